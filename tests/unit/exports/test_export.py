"""Whole folders: what is written, that it is what the runtime reads, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clip
from clip import samples
from clip.checkpoints.files import fingerprint, read_checkpoint
from clip.config import CLIPConfig
from clip.errors import CheckpointError, ConfigError, ConversionError
from clip.exports import certificate as certificates
from clip.exports import export as exporting
from clip.exports.certificate import Certificate
from clip.exports.export import export
from clip.inference.exported import ExportedCLIP
from clip.model import CLIP
from clip.simple_tokenizer import token_ids

TINY = CLIPConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=2,
    vision_width=32,
    vision_heads=2,
    vision_patch_size=16,
    transformer_width=32,
    transformer_heads=2,
    transformer_layers=2,
    logit_bias=True,
)
FILES = {"openvino": ["image.bin", "image.xml", "text.bin", "text.xml"], "onnx": ["image.onnx", "text.onnx"]}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    clip.save(CLIP.from_config(TINY).eval().half(), path, licence="mine")
    return path


@pytest.fixture(scope="module", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled graphs are kept in the home directory."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "home", lambda: home)
        yield


@pytest.fixture(scope="module")
def exports(model_file: Path) -> dict[str, tuple[Path, Certificate]]:
    """Each kind of folder, with the certificate that the function gave."""
    made = {}
    options: dict[str, dict[str, Any]] = {"openvino": {}, "onnx": {"to": "onnx"}, "int8": {"int8": True}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "_MOST_ROUNDS", 1)  # how fast they are is of no interest here
        for kind, chosen in options.items():
            folder = model_file.parent / "exports" / kind  # the folder above is made, too
            made[kind] = folder, export(model_file, folder, **chosen, min_cosine=0.98)
    return made


def _manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "clip.json").read_text(encoding="utf-8"))
    return content


def test_a_folder_holds_graphs_and_all_about_them(
    exports: dict[str, tuple[Path, Certificate]], model_file: Path
) -> None:
    checkpoint = read_checkpoint(model_file)
    for kind, (folder, certificate) in exports.items():
        engine = "onnx" if kind == "onnx" else "openvino"
        assert sorted(path.name for path in folder.iterdir()) == sorted(["clip.json", *FILES[engine]])
        manifest = _manifest(folder)
        assert manifest["files"] == {name: (folder / name).stat().st_size for name in FILES[engine]}
        assert (manifest["format"], manifest["version"]) == ("everyclip-export", 1)
        assert manifest["engine"] == {"onnx": "onnxruntime", "openvino": "openvino"}[engine]
        assert manifest["precision"] == ("int8" if kind == "int8" else "fp32")
        assert CLIPConfig.from_dict(manifest["config"]) == TINY
        assert manifest["preprocess"] == checkpoint.preprocess.to_dict()
        assert manifest["fingerprint"] == fingerprint(checkpoint.config, checkpoint.state_dict)
        assert (manifest["licence"], manifest["source"]) == ("mine", str(model_file))
        assert manifest["logit_scale"] == pytest.approx(np.log(1 / 0.07), abs=1e-3)
        assert manifest["logit_bias"] == -10
        assert manifest["certificate"] == certificate.to_dict()
    assert [path.name for path in (model_file.parent / "exports").iterdir() if path.name.startswith(".")] == []


def test_the_tokenizer_in_the_folder_is_enough_for_a_stranger(exports: dict[str, tuple[Path, Certificate]]) -> None:
    tokenizer = _manifest(exports["openvino"][0])["tokenizer"]
    merges = tokenizer["merges"].split("\n")
    symbols = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    symbols += [symbol + tokenizer["end_of_word"] for symbol in symbols]
    vocabulary = [*symbols, *(merge.replace(" ", "") for merge in merges)]
    ids = [tokenizer["start"]["id"], vocabulary.index("photo</w>"), tokenizer["end"]["id"], tokenizer["padding_id"]]
    assert (len(vocabulary), len(vocabulary) + 1) == (tokenizer["start"]["id"], tokenizer["end"]["id"])
    assert token_ids("photo", 4).tolist() == [ids]


def test_the_runtime_gives_the_features_of_the_model(
    exports: dict[str, tuple[Path, Certificate]], model_file: Path
) -> None:
    model, _ = clip.load(model_file, device="cpu")
    images = torch.randn(3, 3, 32, 32)
    text = torch.from_numpy(token_ids([samples.pictures()[0].caption, "a photo of a rocket", "rocket"]))
    with torch.no_grad():
        expected = [model.encode_image(images).numpy(), model.encode_text(text).numpy()]
    for kind, (folder, _) in exports.items():
        exported = ExportedCLIP.open(folder, precision="int8" if kind == "int8" else "fp32")
        for features, exact in zip(
            (exported.encode_image(images.numpy()), exported.encode_text(text.numpy())), expected, strict=True
        ):
            if kind == "int8":
                norms = np.linalg.norm(features, axis=1) * np.linalg.norm(exact, axis=1)
                assert ((features * exact).sum(axis=1) / norms).min() > 0.98
                assert np.abs(features - exact).max() > 1e-4  # it really is coarser
            else:
                np.testing.assert_allclose(features, exact, atol=2e-5)


def test_certificates_say_what_changed(exports: dict[str, tuple[Path, Certificate]], model_file: Path) -> None:
    for kind, (folder, certificate) in exports.items():
        fidelity = certificate.fidelity
        assert (fidelity.images, fidelity.texts, certificate.pictures) == (36, 108, "the 36 samples of the package")
        assert certificate.reference_bytes == model_file.stat().st_size
        assert certificate.exported_bytes == sum(_manifest(folder)["files"].values())
        assert [(latency.tower, latency.batch_size) for latency in certificate.latencies] == [
            *(("image", 1), ("image", 8), ("text", 1), ("text", 8))
        ]
        assert all(latency.reference_ms > 0 < latency.exported_ms for latency in certificate.latencies)
        if kind == "int8":
            assert 0.98 < fidelity.image_cosine < 1 - 1e-6
        else:
            assert certificate.relative_difference < 1e-4
            assert (certificate.same_labels, certificate.same_finds, certificate.captions) == (36, 36, 36)
    sizes = {kind: certificate.exported_bytes for kind, (_, certificate) in exports.items()}
    assert sizes["int8"] < sizes["openvino"]


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hollow(monkeypatch: pytest.MonkeyPatch, exports: dict[str, tuple[Path, Certificate]]) -> Any:
    """Exports without the work: graphs are empty files, and the certificate is the one that is given."""

    def make(certificate: Certificate) -> None:
        def write(model: object, folder: Path, *_: object) -> None:
            (folder / "image.xml").touch()

        monkeypatch.setattr(exporting, "_write_towers", write)
        monkeypatch.setattr(exporting.ExportedCLIP, "open", lambda *_, **__: None)
        monkeypatch.setattr(exporting, "certify", lambda *_, **__: certificate)

    return make


def test_an_unfaithful_export_leaves_nothing_behind(
    hollow: Any, exports: dict[str, tuple[Path, Certificate]], model_file: Path, tmp_path: Path
) -> None:
    certificate = exports["openvino"][1]
    for share in (2e-4, float("nan")):
        hollow(dataclasses.replace(certificate, relative_difference=share))
        with pytest.raises(ConversionError, match=r"differs from the model by .* Please report it"):
            export(model_file, tmp_path / "out")
    fidelity = dataclasses.replace(certificate.fidelity, text_cosine=0.9985)
    hollow(dataclasses.replace(certificate, fidelity=fidelity, relative_difference=0.1))
    with pytest.raises(ConversionError, match=r"of a text has cosine 0\.998500 .* 0\.999 .*--calibration"):
        export(model_file, tmp_path / "out", int8=True)
    assert list(tmp_path.iterdir()) == []
    export(model_file, tmp_path / "out", int8=True, min_cosine=0.998)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.json", "image.xml"]


def test_what_fails_half_way_leaves_nothing_behind(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: object, folder: Path, *_: object) -> None:
        (folder / "image.xml").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_write_towers", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*out: No space left on device"):
        export(model_file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    nowhere = tmp_path / "no model"
    with pytest.raises(ConversionError, match="engine 'tensorrt' is not known; known are openvino, onnx"):
        export(nowhere, tmp_path / "out", "tensorrt")  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match="int8 is for OpenVINO"):
        export(nowhere, tmp_path / "out", "onnx", int8=True)
    with pytest.raises(ConfigError, match=r"min_cosine is 1\.5"):
        export(nowhere, tmp_path / "out", min_cosine=1.5)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="out exists; remove it or choose another name"):
        export(nowhere, tmp_path / "out")
