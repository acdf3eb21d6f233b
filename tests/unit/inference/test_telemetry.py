"""No engine tells anybody that it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import os, sys
for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # where OpenVINO is silent anyway
    os.environ.pop(name, None)
from clip.inference.telemetry import without_telemetry
calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
with without_telemetry():
    import openvino, nncf, onnxruntime
    from openvino_telemetry.main import Telemetry
    Telemetry().send_event("ov", "import", "again")
    Telemetry().send_event("ov", "import", "whatever the consent", force_send=True)
Telemetry().force_shutdown(1.0)
print(calls)
"""


def test_no_address_is_asked_for_and_no_identifier_is_made(tmp_path: Path) -> None:
    """In a process of its own: under pytest nncf is silent anyway."""
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert not list(tmp_path.rglob("*intel*")) and not list(tmp_path.rglob("*deviceid*"))
