"""OpenVINO's tools without their telemetry.

``openvino.convert_model`` and ``import nncf`` report each use to Google Analytics unless a file in the home directory
forbids it, and put an identifier and a counter into ``~/intel``. Nobody who exports a model here was asked, so inside
``without_telemetry`` consent is refused and nothing is sent, whatever the file says.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

__all__ = ["without_telemetry"]


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Import nncf and call either inside. Where ``openvino-telemetry`` is not installed there is nothing to silence."""
    try:
        opting: Any = importlib.import_module("openvino_telemetry.utils.opt_in_checker")
        sending: Any = importlib.import_module("openvino_telemetry.utils.sender")
    except ImportError:
        yield
        return
    check, send = opting.OptInChecker.check, sending.TelemetrySender.send
    opting.OptInChecker.check = lambda *_, **__: opting.ConsentCheckResult.DECLINED  # what asks, and writes files
    sending.TelemetrySender.send = lambda *_, **__: None  # what was asked before, when somebody else used the tools
    try:
        yield
    finally:
        opting.OptInChecker.check, sending.TelemetrySender.send = check, send
