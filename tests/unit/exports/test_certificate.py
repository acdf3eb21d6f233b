"""Certificates of stand-ins with a known error, and what models are compared with."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clip.config import CLIPConfig
from clip.errors import ClipError, ImageError
from clip.exports.certificate import certify, inputs_for
from clip.model import CLIP
from clip.preprocess import Preprocess

TINY = CLIPConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=16,
    transformer_width=64,
    transformer_layers=1,
)


class _Shifted:
    """The model itself, one number of every feature larger by a known amount."""

    engine = "onnxruntime"

    def __init__(self, model: CLIP, image_shift: float, text_shift: float) -> None:
        self.model, self.image_shift, self.text_shift = model, image_shift, text_shift

    def encode_image(self, images: Any) -> Any:
        return self._shifted(self.model.encode_image(torch.from_numpy(images)), self.image_shift)

    def encode_text(self, text: Any) -> Any:
        return self._shifted(self.model.encode_text(torch.from_numpy(text)), self.text_shift)

    def _shifted(self, features: torch.Tensor, shift: float) -> Any:
        array = features.detach().numpy().copy()
        array[:, 3] += shift
        return array


def test_the_certificate_finds_the_known_error() -> None:
    model = CLIP.from_config(TINY).eval()
    inputs = inputs_for(TINY, Preprocess(size=32))
    certificate = certify(model, _Shifted(model, 0.5, 0.0), inputs, reference_bytes=10, exported_bytes=5)  # type: ignore[arg-type]
    assert certificate.image_difference == pytest.approx(0.5, abs=1e-6)
    assert certificate.text_difference == 0
    with torch.no_grad():
        features = model.encode_image(torch.from_numpy(inputs.images))
    assert certificate.relative_difference == pytest.approx(0.5 / features.abs().max().item(), rel=1e-4)
    moved = features + 0.5 * torch.nn.functional.one_hot(torch.tensor(3), 16)
    cosine = torch.nn.functional.cosine_similarity(features, moved).min().item()
    assert certificate.fidelity.image_cosine == pytest.approx(cosine, abs=1e-6)
    assert certificate.fidelity.text_cosine == pytest.approx(1, abs=1e-12)
    assert certificate.engine.startswith("onnxruntime ") and certificate.reference == f"torch {torch.__version__}"
    prompts = model.encode_text(torch.from_numpy(inputs.text[36:72])).detach()
    best = [(torch.nn.functional.normalize(prompts) @ images.T).argmax(dim=0) for images in (features, moved)]
    assert certificate.same_labels == int((best[0] == best[1]).sum())
    assert 0 <= certificate.same_finds <= certificate.captions == 36
    content = certificate.to_dict()
    assert (content["reference_bytes"], content["exported_bytes"]) == (10, 5)
    assert content["fidelity"]["changed_answers_share"] == certificate.fidelity.changed_answers / 36
    latency = content["latencies"][0]
    assert latency["speed_up"] == latency["reference_ms"] / latency["exported_ms"]


def _picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 32), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_pictures_of_ones_own_take_the_place_of_the_samples() -> None:
    preprocess = Preprocess(size=32)
    inputs = inputs_for(TINY, preprocess, [_picture(0), _picture(200)])
    assert inputs.pictures == "2 pictures"
    expected = [preprocess.to_numpy(Image.open(io.BytesIO(_picture(shade)))) for shade in (0, 200)]
    np.testing.assert_array_equal(inputs.images, np.stack(expected))
    assert inputs.text.shape == (108, 77)
    assert (inputs.text.max(axis=1) == 49407).all()


def test_of_many_pictures_some_are_taken_from_all_over() -> None:
    many = [_picture(shade % 256) for shade in range(512)]
    inputs = inputs_for(TINY, Preprocess(size=32), many)
    assert (inputs.pictures, len(inputs.images)) == ("256 pictures of 512", 256)


def test_what_is_no_picture_is_named() -> None:
    with pytest.raises(ImageError, match=r"nothing\.png"):
        inputs_for(TINY, Preprocess(size=32), ["nothing.png"])
    with pytest.raises(ClipError, match="there are no pictures"):
        inputs_for(TINY, Preprocess(size=32), [])


def test_a_vocabulary_of_another_size_gets_texts_that_end_where_they_should() -> None:
    known = inputs_for(TINY, Preprocess(size=32)).text
    small = inputs_for(dataclasses.replace(TINY, vocab_size=100), Preprocess(size=32)).text
    assert small.max() == 99
    np.testing.assert_array_equal(small.argmax(axis=1), known.argmax(axis=1))
