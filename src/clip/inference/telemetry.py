"""The engines without their telemetry.

``import openvino`` starts a session with Google Analytics, ``openvino.convert_model`` and ``import nncf`` report what
they are used for, and an identifier and a counter are put into ``~/intel``, unless a file in there forbids it. ``import
onnxruntime`` (1.32) makes an identifier in ``~/.cache/Microsoft`` and a database of events to send. Nobody who runs a
model here was asked, so inside ``without_telemetry`` consent is refused and nothing is sent, whatever those files say.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any

__all__ = ["without_telemetry"]


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Import openvino, nncf and onnxruntime inside, and call the tools of the first two."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at the import of onnxruntime and at its end
    try:
        opting: Any = importlib.import_module("openvino_telemetry.utils.opt_in_checker")
        sending: Any = importlib.import_module("openvino_telemetry.utils.sender")
    except ImportError:  # OpenVINO does without, and so there is nothing to silence
        yield
        return
    check, send = opting.OptInChecker.check, sending.TelemetrySender.send
    opting.OptInChecker.check = lambda *_, **__: opting.ConsentCheckResult.DECLINED  # what asks, and writes files
    sending.TelemetrySender.send = lambda *_, **__: None  # for sessions that others began before
    try:
        yield
    finally:
        opting.OptInChecker.check, sending.TelemetrySender.send = check, send
