"""The one way to a model: which form of it comes, what is said of it, and what identifies it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import clip
from clip.checkpoints.files import fingerprint
from clip.errors import ConfigError, ModelNotFoundError
from clip.inference import precision
from clip.inference.loading import Runtime, fingerprint_of, load_for_inference, runtime_of
from clip.inference.optimized import InferenceCLIP
from clip.model import CLIP, convert_weights


@pytest.fixture
def file(tiny_vit: CLIP, tmp_path: Path) -> Path:
    clip.save(tiny_vit, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.mark.parametrize("asked", ["auto", "fp32", "bf16"])
def test_on_a_cpu_the_packed_model_comes_and_says_what_it_is(
    file: Path, asked: precision.Precision, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="clip.inference.loading"):
        model, preprocess = load_for_inference(file, device="cpu", precision=asked)
    assert isinstance(model, InferenceCLIP)
    assert preprocess.size == 32
    assert runtime_of(model) == Runtime("torch", precision.resolved(asked), "cpu")
    assert caplog.messages == [f"{file}: {precision.resolved(asked)} by torch on cpu"]


def test_what_runs_is_told_of_an_ordinary_model_too(tiny_vit: CLIP) -> None:
    assert str(runtime_of(tiny_vit)) == "fp32 by torch on cpu"
    for dtype, name in ((torch.float16, "fp16"), (torch.bfloat16, "bf16")):
        convert_weights(tiny_vit, dtype)
        assert runtime_of(tiny_vit) == Runtime("torch", name, "cpu")


def test_the_model_is_the_one_in_the_file(file: Path, tiny_vit: CLIP) -> None:
    model, _ = load_for_inference(str(file), device="cpu", precision="fp32")
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model.encode_image(images), tiny_vit.encode_image(images).detach(), atol=1e-5, rtol=1e-5)


def test_bad_requests_are_told_before_a_file_is_read(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(ConfigError, match="precision is 'fp8'; it must be one of"):
        load_for_inference(gone, device="cpu", precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="int8 is for CPUs; on cuda"):
        load_for_inference(gone, device="cuda", precision="int8")
    for name in (gone, "a" * 5000, "nul\0"):  # neither of which a file system can hold
        with pytest.raises(ModelNotFoundError):
            load_for_inference(name, device="cpu")


def test_a_fingerprint_is_of_the_weights_and_not_of_the_format(file: Path, tiny_vit: CLIP, tmp_path: Path) -> None:
    found = fingerprint_of(file)
    assert found == fingerprint(tiny_vit.config, tiny_vit.state_dict())
    for to in ("openai", "openclip", "transformers"):
        clip.convert(file, tmp_path / to, to)
        assert fingerprint_of(tmp_path / to) == found
    convert_weights(tiny_vit, torch.float16)  # rounded: other weights
    clip.save(tiny_vit, tmp_path / "half.safetensors")
    assert fingerprint_of(tmp_path / "half.safetensors") != found
