"""``clip export``: what it passes on, and how it prints a certificate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip.exports import export as exporting
from clip.exports.certificate import Certificate, Latency
from clip.fidelity import Fidelity

Run = Callable[..., Any]

CERTIFICATE = Certificate(
    pictures="the 36 samples of the package",
    fidelity=Fidelity(
        images=36,
        texts=108,
        image_cosine=0.99951,
        image_centred_cosine=0.998,
        text_cosine=0.9997,
        text_centred_cosine=None,
        similarity_change=0.0023456789,
        changed_answers=1,
        changed_finds=0,
    ),
    same_labels=35,
    captions=36,
    same_finds=34,
    image_difference=0.031,
    text_difference=0.012,
    relative_difference=0.02,
    reference_bytes=25_600_000,
    exported_bytes=9_000_000,
    latencies=(
        Latency(tower="image", batch_size=1, reference_ms=60, exported_ms=12),
        Latency(tower="text", batch_size=8, reference_ms=30, exported_ms=20),
    ),
    threads=2,
    engine="openvino 2026.4.1",
    reference="torch 2.13.0",
    date="2026-11-23",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Exports nothing; holds what the library was asked for."""
    asked: dict[str, Any] = {}

    def export(source: str, destination: str, to: str, **options: Any) -> Certificate:
        asked.update(options, source=source, destination=destination, to=to)
        return CERTIFICATE

    monkeypatch.setattr(exporting, "export", export)
    return asked


def test_the_certificate_is_a_table(clip_run: Run, asked: dict[str, Any]) -> None:
    outcome = clip_run("export", "pocket", "out", "--to", "openvino", "--int8", "--min-cosine", "0.99")
    assert (outcome.status, outcome.err) == (0, "clip: pocket is now out (openvino 2026.4.1, int8)\n")
    assert outcome.lines == [
        "compared with                   torch 2.13.0 in fp32, on the 36 samples of the package and 108 texts",
        "largest difference of features  images 3.1e-02, texts 1.2e-02",
        "least cosine of images          0.999510, centred 0.998000",
        "least cosine of texts           0.999700",
        "largest change of a similarity  0.0023",
        "same best label                 35 of 36 pictures",
        "same best picture               34 of 36 captions",
        "size on disk                    9.0 MB, the checkpoint 25.6 MB",
        "1 image                         12.00 ms, torch fp32 60.00 ms: 5.0 times as fast",
        "8 texts                         20.00 ms, torch fp32 30.00 ms: 1.5 times as fast",
    ]
    assert asked == {
        **{"source": "pocket", "destination": "out", "to": "openvino", "int8": True, "min_cosine": 0.99},
        **{"pictures": None, "activation": None},
    }


def test_json_is_the_certificate(clip_run: Run, asked: dict[str, Any]) -> None:
    outcome = clip_run("export", "pocket", "out", "--to", "onnx", "--json", "--activation", "gelu")
    assert (outcome.status, outcome.err) == (0, "")
    expected = {"model": "pocket", "output": "out", "engine": "onnx", "int8": False, **CERTIFICATE.to_dict()}
    assert json.loads(outcome.out) == json.loads(json.dumps(expected))
    assert asked["activation"] == "gelu"


def test_calibration_is_a_folder_of_pictures(clip_run: Run, asked: dict[str, Any], pictures: Path) -> None:
    assert clip_run("export", "pocket", "out", "--to", "openvino", "--calibration", pictures, "-q").err == ""
    assert [Path(path).name for path in asked["pictures"]] == ["a.JPG", "b.png", "d.gif", "c.webp"]


def test_what_is_refused_is_said_in_one_line(clip_run: Run, tmp_path: Path) -> None:
    assert clip_run("export", "pocket", tmp_path / "out").status == 2  # which engine?
    outcome = clip_run("export", "pocket", tmp_path / "out", "--to", "onnx", "--int8")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("clip: error: int8 is for OpenVINO")
    outcome = clip_run("export", "pocket", tmp_path, "--to", "openvino")
    assert (outcome.status, outcome.out) == (1, "") and "exists; remove it or choose another name" in outcome.err
