"""An index filled by workers of Ray: whoever is killed, each picture comes into it once, and none is embedded again."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip.search.index import Index
from clip.search.items import Item
from clip.search.ray_engine import RayEngine
from clip.search.sources import Part, in_parts

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")

PICTURES = 40
# A picture takes a fifth of a second here, so that there is a middle in which to kill; each reading of one is noted.
DRIVER = """
import dataclasses, functools, os, time
from clip.search.index import Index
from clip.search.ray_engine import RayEngine
from clip.search.seen import Seen
from clip.search.sources import in_parts, open_source

@dataclasses.dataclass(frozen=True)
class Slow:
    part: object

    def items(self, on_problem):
        for item in self.part.items(on_problem):
            with open(os.environ["TEST_RAY"], "a") as log:
                log.write(f"{os.getpid()} {item.path}\\n")
            time.sleep(0.2)
            yield item

def parts(store):
    for item in open_source("pictures.csv").items(print, functools.partial(Seen, store)):
        for part in in_parts(iter([item])):
            yield Slow(part)

if __name__ == "__main__":
    with Index.open("index") as index:
        with RayEngine(index.store, "pocket", work_folder="work", workers=2) as engine:
            engine.add(parts(index.store))
            print(engine.report.to_dict(), engine.report.failed)
"""


@pytest.fixture(autouse=True)
def _short_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where a driver that is killed leaves the files of its Ray. The path of a socket must be short."""
    with tempfile.TemporaryDirectory(prefix="ct-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


def _read(log: Path) -> list[tuple[int, str]]:
    """Who read which picture."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [(int(pid), path) for pid, _, path in (line.partition(" ") for line in lines)]


def _wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _start(folder: Path, log: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "driver.py", str(log)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TEST_RAY": str(log)},
    )  # fmt: skip


AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
"""Of a driver that is killed, they look for it for a minute, and do nothing else."""


def _left_behind(log: Path, *, besides: tuple[bytes, ...] = ()) -> list[bytes]:
    """Command lines of processes that were started, by whatever way, by the driver of this log."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_one = f"TEST_RAY={log}".encode() in (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().rstrip(b"\0")
            is_alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            continue
        if is_one and is_alive and command not in besides:
            found.append(command)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_each_picture_once_though_driver_and_worker_are_killed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for i in range(PICTURES):
        Image.fromarray(noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    names = [*(f"{i:02}.jpg" for i in range(PICTURES)), "bad.jpg"]
    (tmp_path / "pictures.csv").write_text("path,number\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)))
    (tmp_path / "driver.py").write_text(DRIVER)
    with Index.open(tmp_path / "index", model="pocket", create=True):
        pass

    first = tmp_path / "first.log"
    driver = _start(tmp_path, first)
    _wait_for(lambda: len(_read(first)) >= 12, driver)
    driver.kill()
    driver.communicate()
    deadline = time.monotonic() + 40
    while left := _left_behind(first, besides=AGENTS):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    with Index.open(tmp_path / "index") as index:
        stored = {row.path for row in index.store.known()}
    finished = len(list((tmp_path / "work").rglob("*.parquet")))
    assert stored, "nothing was stored before the kill"

    second = tmp_path / "second.log"
    driver = _start(tmp_path, second)
    _wait_for(lambda: len(_read(second)) >= 6, driver)
    os.kill(_read(second)[0][0], signal.SIGKILL)  # a worker
    out, err = driver.communicate(timeout=180)
    assert driver.returncode == 0, err
    assert "bad.jpg" in out

    again = Counter(path for _, path in _read(second))
    assert not stored & again.keys(), "what was stored is embedded again"
    assert len(again) <= PICTURES + 1 - len(stored) - finished, "what was finished is embedded again"
    assert len({pid for pid, _ in _read(second)}) == 3, "another worker took the place of the one that was killed"
    assert sum(again.values()) - len(again) <= 4, "only what a killed worker had in hand is read twice"
    with Index.open(tmp_path / "index") as index:
        rows = [row for found in index.store.scan() for row in found.rows]
        assert sorted(row.path for row in rows) == [str(tmp_path / name) for name in names[:-1]]
        assert all(row.metadata == {"number": names.index(Path(row.path).name)} for row in rows)
        assert all(row.digest and row.width == 40 and row.format == "JPEG" for row in rows)
        [nearest] = index.store.nearest(index.encoder.images([str(tmp_path / "07.jpg")]), 1)
        assert index.store.find(nearest.ids).rows[0].path == str(tmp_path / "07.jpg")
        assert nearest.cosines[0] > 0.999
    assert not list((tmp_path / "work").rglob("*.parquet"))
    assert not _left_behind(second)


def test_a_file_whose_part_was_done_again_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may die after its file is whole and before the driver hears of it; another then does its part."""

    def done(self: RayEngine, parts: Sequence[Part]) -> Iterator[dict[str, object]]:
        [work] = (tmp_path / "work").iterdir()
        (work / "told-nobody.parquet").write_bytes(b"rows that are stored by another file")
        yield {"file": "", "embedded": 0, "failed": []}

    monkeypatch.setattr(RayEngine, "_done", done)
    with (
        Index.open(tmp_path / "index", model="pocket", create=True) as index,
        RayEngine(index.store, "pocket", work_folder=tmp_path / "work") as engine,
    ):
        engine.add(in_parts(iter([Item(path="a.jpg", image="a.jpg")])))
    assert not list((tmp_path / "work").rglob("*"))


def test_the_command_embeds_shards_by_workers(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for i in range(3):
            file = io.BytesIO()
            Image.new("RGB", (64, 48), (80 * i, 0, 0)).save(file, "JPEG")
            for name, content in ((f"{i}.jpg", file.getvalue()), (f"{i}.txt", b"a colour")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    command = [sys.executable, "-m", "clip", "index", "some.tar", "--into", "index", "--model", "pocket", "--json"]
    for expected in (3, 0):  # the second time there is nothing to do, and Ray is not even started
        done = subprocess.run(
            [*command, "--engine", "ray", "--workers", "2"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["embedded"] == expected
    with Index.open(tmp_path / "index") as index:
        rows = [row for found in index.store.scan() for row in found.rows]
        assert sorted(row.path for row in rows) == [f"{tmp_path}/some.tar/{i}.jpg" for i in range(3)]
        assert all(row.metadata == {"caption": "a colour"} for row in rows)
