"""A browser that tests drive as a person would: real keys and clicks, over the pipe of Chromium's DevTools protocol.

A pipe, because it needs nothing but Python: messages are JSON, each ended by a zero byte, on file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Gives the browser its two ends the numbers that it expects, by way of others in case they are those already.
_PLUG = """
import os, sys
ends = [os.dup(int(end)) for end in sys.argv[1:3]]
high = [os.dup2(end, 60 + i) for i, end in enumerate(ends)]
os.dup2(high[0], 3), os.dup2(high[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

_KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "Escape": 27, "Tab": 9, "Enter": 13}


class Browser:
    """One window. ``errors`` has what the page threw or was refused by its policy."""

    def __init__(self, profile: Path, *, seconds: float = 60.0) -> None:
        self.downloads = profile / "downloads"
        self.downloads.mkdir(parents=True)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._seconds = seconds
        self._numbers = itertools.count(1)
        self._waiting = b""
        self._events: list[str] = []
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        browser = [str(CHROMIUM), *options, f"--user-data-dir={profile}", "about:blank"]
        command = [sys.executable, "-c", _PLUG, str(to_read), str(to_write), *browser]
        with (profile / "stderr").open("wb") as said:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=(to_read, to_write)
            )
        os.close(to_read)
        os.close(to_write)
        self._session: str | None = None
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _begin(self) -> None:
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._write)
        os.close(self._read)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while (answer := self._next()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + self._seconds
        while b"\0" not in self._waiting:
            assert select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0], "the browser says nothing"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._waiting += part
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.send("Page.navigate", url=page.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._note(self._next())

    def js(self, expression: str) -> Any:
        """The value of an expression, as JSON carries it."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        for key in keys:
            code = _KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
            text = {"text": key} if len(key) == 1 else {}
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def click(self, selector: str) -> None:
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.js(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            clicks = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], **clicks)

    def choose(self, selector: str, value: str) -> None:
        """Gives a control a value, and tells the page as a person's hand would."""
        self.js(
            f"(c => {{ c.value = {json.dumps(value)}; for (const kind of ['input', 'change'])"
            f" c.dispatchEvent(new Event(kind, {{bubbles: true}})); }})(document.querySelector({json.dumps(selector)}))"
        )

    def downloaded(self, name: str) -> bytes:
        """A file that the page saved; taken away, so that the next of this name is another."""
        path, end = self.downloads / name, time.monotonic() + self._seconds
        while not path.exists():
            assert time.monotonic() < end, f"{name} was not saved"
            time.sleep(0.02)
        data = path.read_bytes()
        path.unlink()
        return data

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
