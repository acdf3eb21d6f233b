"""Streams of images and texts: order, failures, bounds, and the same numbers as one by one."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from clip.clip import tokenize
from clip.errors import ClipError, ConfigError, ImageError, ShapeError, TextTooLongError
from clip.features import Encoded, Failure, as_array, encode_images, encode_texts, normalized
from clip.inference.exported import ExportedCLIP
from clip.inference.manifest import Manifest
from clip.inference.optimized import optimize_for_inference
from clip.model import CLIP, convert_weights
from clip.preprocess import Preprocess

PREPROCESS = Preprocess(size=32)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def joined(batches: Iterator[Encoded]) -> tuple[list[int], list, np.ndarray]:
    """All batches as one."""
    parts = list(batches)
    positions = [position for part in parts for position in part.positions]
    sources = [source for part in parts for source in part.sources]
    return positions, sources, np.concatenate([part.embeddings for part in parts])


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_images_keep_their_order_and_get_the_embedding_of_one_alone(
    tiny_vit: CLIP, batch_size: int, workers: int
) -> None:
    images = [picture(seed) for seed in range(7)]
    expected = torch.cat([normalized(tiny_vit.encode_image(PREPROCESS(image).unsqueeze(0))) for image in images])
    batches = encode_images(tiny_vit, PREPROCESS, iter(images), batch_size=batch_size, workers=workers)
    positions, sources, embeddings = joined(batches)
    assert positions == list(range(7))
    assert all(a is b for a, b in zip(sources, images, strict=True))
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected.detach(), atol=1e-6, rtol=0)  # rounding of sums in another order


def test_every_kind_of_source_is_read(tiny_vit: CLIP, tmp_path: Path) -> None:
    image = picture(0)
    path = tmp_path / "a.png"
    image.save(path)
    sources = [str(path), path, path.read_bytes(), io.BytesIO(path.read_bytes()), np.array(image), image]
    _, _, embeddings = joined(encode_images(tiny_vit, PREPROCESS, [*sources, PREPROCESS(image)]))
    # Files take the fast path, at most a grey level from the exact one.
    np.testing.assert_allclose(embeddings, embeddings[:1].repeat(len(embeddings), axis=0), atol=0.02, rtol=0)
    np.testing.assert_allclose(embeddings[5], embeddings[6], atol=1e-6, rtol=0)


def test_a_bad_picture_is_reported_and_moves_no_other(tiny_vit: CLIP, tmp_path: Path) -> None:
    good = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(good):
        picture(i).save(path)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    sources = [tmp_path / "bad.png", *good[:2], tmp_path / "gone.png", *good[2:], tmp_path / "bad.png"]
    log: list[object] = []
    failures: list[Failure] = []

    def on_error(failure: Failure) -> None:
        failures.append(failure)
        log.append(failure.position)

    for batch in encode_images(tiny_vit, PREPROCESS, sources, batch_size=2, on_error=on_error):
        log.append(batch.positions)
    assert log == [0, [1, 2], 3, [4, 5], 7, [6]]  # told before the batch that is being filled
    assert [failure.source for failure in failures] == [sources[0], sources[3], sources[7]]
    assert "gone.png" in str(failures[1].error)
    _, _, alone = joined(encode_images(tiny_vit, PREPROCESS, good))
    _, _, among = joined(encode_images(tiny_vit, PREPROCESS, sources, on_error=on_error))
    np.testing.assert_allclose(among, alone, atol=1e-6, rtol=0)


def test_without_on_error_a_bad_picture_ends_the_stream(tiny_vit: CLIP, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="gone"):
        list(encode_images(tiny_vit, PREPROCESS, [picture(0), tmp_path / "gone.png"]))


def test_an_on_error_that_raises_ends_the_stream(tiny_vit: CLIP) -> None:
    def too_many(failure: Failure) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        list(encode_images(tiny_vit, PREPROCESS, [b"bad"], on_error=too_many))


def test_the_stream_is_read_two_batches_ahead_and_no_further(tiny_vit: CLIP) -> None:
    taken = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal taken
        while True:
            taken += 1
            yield picture(0)

    batches = encode_images(tiny_vit, PREPROCESS, endless(), batch_size=4)
    assert taken == 0
    for done in range(1, 4):
        next(batches)
        assert taken <= 4 * done + 8
    batches.close()


def test_no_thread_is_left_when_the_stream_is_abandoned(tiny_vit: CLIP) -> None:
    batches = encode_images(tiny_vit, PREPROCESS, [picture(i) for i in range(20)], batch_size=2)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clip-decode")]


def test_pictures_are_decoded_while_the_model_works(tiny_vit: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    last_is_decoded = threading.Event()

    class Watched:
        size = 32

        def __call__(self, pixels: np.ndarray) -> Tensor:
            if pixels[0, 0, 0] == 3:
                last_is_decoded.set()
            return torch.zeros(3, 32, 32)

    in_time: list[bool] = []
    encode = tiny_vit.encode_image

    def encode_image(pixels: Tensor) -> Tensor:
        in_time.append(last_is_decoded.wait(timeout=30))
        return encode(pixels)

    monkeypatch.setattr(tiny_vit, "encode_image", encode_image)
    arrays = [np.full((2, 2, 3), i, dtype=np.uint8) for i in range(4)]
    assert len(list(encode_images(tiny_vit, Watched(), arrays, batch_size=2, workers=1))) == 2  # type: ignore[arg-type]
    assert in_time == [True, True]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the threads of Linux")
@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="torch's filter has no vector code")
def test_a_decoding_thread_starts_no_team_of_its_own(tiny_vit: CLIP) -> None:
    threads, started = Path("/proc/self/task"), []

    class Counted:
        size = 32

        def __call__(self, pixels: np.ndarray) -> Tensor:
            before = len(list(threads.iterdir()))
            result = PREPROCESS(pixels)
            started.append(len(list(threads.iterdir())) - before)
            return result

    torch.set_num_threads(4)  # what a team would be
    large = np.zeros((480, 640, 3), np.uint8)
    list(encode_images(tiny_vit, Counted(), [large, large], workers=1))  # type: ignore[arg-type]
    assert started == [0, 0]


def test_a_preprocessed_image_may_be_an_array(tiny_vit: CLIP) -> None:
    image = PREPROCESS(picture(0))
    _, _, embeddings = joined(encode_images(tiny_vit, PREPROCESS, [image, image.numpy()]))
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=1e-6)
    with pytest.raises(ShapeError, match=r"\(3, 16, 16\)"):
        list(encode_images(tiny_vit, PREPROCESS, [np.zeros((3, 16, 16), np.float32)]))


def test_a_preprocessed_tensor_of_another_size_is_an_error(tiny_vit: CLIP) -> None:
    with pytest.raises(ShapeError, match=r"\(3, 16, 16\)"):
        list(encode_images(tiny_vit, PREPROCESS, [torch.zeros(3, 16, 16)]))


# Texts ----------------------------------------------------------------------------------------------------------------

LENGTHS = (5, 1, 9, 2, 9, 1, 30, 3, 8, 1, 2)
TEXTS = [" ".join(["owl"] * length) + f" {i}" for i, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_texts_keep_their_order_and_get_the_embedding_of_one_alone(tiny_vit: CLIP, batch_size: int) -> None:
    expected = torch.cat([normalized(tiny_vit.encode_text(tokenize(text))) for text in TEXTS]).detach()
    positions, sources, embeddings = joined(encode_texts(tiny_vit, iter(TEXTS), batch_size=batch_size))
    assert (positions, sources) == (list(range(len(TEXTS))), TEXTS)
    np.testing.assert_allclose(embeddings, expected, atol=1e-6, rtol=0)


def test_texts_of_similar_length_are_encoded_together(tiny_vit: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = 0
    encode = tiny_vit.encode_text

    def encode_text(ids: Tensor) -> Tensor:
        nonlocal computed
        computed += len(ids) * (int(ids.argmax(dim=1).max()) + 1)  # the rest is cut off by the model
        return encode(ids)

    monkeypatch.setattr(tiny_vit, "encode_text", encode_text)
    texts = [" ".join(["owl"] * (1 + i * 7 % 40)) for i in range(160)]
    list(encode_texts(tiny_vit, texts, batch_size=10))
    needed = sum(1 + i * 7 % 40 + 2 for i in range(160))
    assert computed <= 1.15 * needed


def test_a_special_word_in_a_text_hides_nothing(tiny_vit: CLIP) -> None:
    texts = ["a cat", "a cat<|endoftext|> and a weapon"]
    _, _, safe = joined(encode_texts(tiny_vit, texts))
    assert float(safe[0] @ safe[1]) < 0.999
    _, _, trusting = joined(encode_texts(tiny_vit, texts, special_words=True))
    np.testing.assert_allclose(trusting[0], trusting[1], atol=1e-6, rtol=0)


def test_a_long_text_raises_is_left_out_or_is_cut(tiny_vit: CLIP) -> None:
    texts = ["owl", "word " * 100, "cat"]
    with pytest.raises(TextTooLongError, match=r"^text 1 .* 102 tokens.* 77"):
        list(encode_texts(tiny_vit, texts))
    failures: list[Failure] = []
    positions, _, _ = joined(encode_texts(tiny_vit, texts, batch_size=1, on_error=failures.append))
    assert positions == [0, 2]
    assert [(failure.position, type(failure.error)) for failure in failures] == [(1, TextTooLongError)]
    assert joined(encode_texts(tiny_vit, texts, truncate=True))[0] == [0, 1, 2]
    assert list(encode_texts(tiny_vit, texts[1:2], on_error=failures.append)) == []


def test_the_position_of_a_long_text_counts_from_the_start_of_the_stream(tiny_vit: CLIP) -> None:
    failures: list[Failure] = []
    texts = ["owl"] * 20 + ["word " * 100]
    list(encode_texts(tiny_vit, texts, batch_size=1, on_error=failures.append))  # the second window
    assert failures[0].position == 20
    assert str(failures[0].error).startswith("text 20 ")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(TEXTS))), batch_size=st.integers(1, 5))
def test_embeddings_follow_any_order_of_the_texts(tiny_vit: CLIP, order: list[int], batch_size: int) -> None:
    _, _, sorted_ones = joined(encode_texts(tiny_vit, TEXTS))
    _, _, shuffled = joined(encode_texts(tiny_vit, [TEXTS[i] for i in order], batch_size=batch_size))
    np.testing.assert_allclose(shuffled, sorted_ones[order], atol=1e-6, rtol=0)


def test_a_model_with_another_vocabulary_is_told(tiny_vit: CLIP) -> None:
    model = CLIP.from_config(dataclasses.replace(tiny_vit.config, vocab_size=64)).eval()
    with pytest.raises(ConfigError, match="knows 64 tokens"):
        list(encode_texts(model, ["owl"]))


# Both -----------------------------------------------------------------------------------------------------------------


def test_embeddings_are_fp32_at_unit_norm_whatever_the_precision_of_the_model(tiny_vit: CLIP) -> None:
    convert_weights(tiny_vit, torch.bfloat16)
    for batches in (encode_texts(tiny_vit, ["owl", "cat"]), encode_images(tiny_vit, PREPROCESS, [picture(0)])):
        _, _, embeddings = joined(batches)
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)


def test_a_probe_can_be_trained_on_embeddings(tiny_vit: CLIP) -> None:
    _, _, embeddings = joined(encode_texts(tiny_vit, ["owl", "cat"]))
    weight = torch.zeros(16, 2, requires_grad=True)
    (torch.from_numpy(embeddings) @ weight).sum().backward()  # an inference tensor would refuse
    assert weight.grad is not None


def test_features_that_are_not_finite_are_failures(tiny_vit: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = tiny_vit.encode_text

    def overflowing(ids: Tensor) -> Tensor:
        features = encode(ids).clone()
        features[ids[:, 1] == tokenize("cat")[0, 1]] = torch.inf
        return features

    monkeypatch.setattr(tiny_vit, "encode_text", overflowing)
    failures: list[Failure] = []
    positions, _, embeddings = joined(encode_texts(tiny_vit, ["owl", "cat", "dog"], on_error=failures.append))
    assert positions == [0, 2]
    assert np.isfinite(embeddings).all()
    assert [failure.source for failure in failures] == ["cat"]
    with pytest.raises(ClipError, match="not finite"):
        list(encode_texts(tiny_vit, ["cat"]))


def exported(model: CLIP) -> ExportedCLIP:
    """The model behind the arrays of an exported one."""

    @torch.no_grad()
    def image_graph(images: np.ndarray) -> np.ndarray:
        return model.encode_image(torch.from_numpy(images)).numpy()

    @torch.no_grad()
    def text_graph(text: np.ndarray) -> np.ndarray:
        return model.encode_text(torch.from_numpy(text)).numpy()

    scale = {"logit_scale": model.logit_scale.item(), "logit_bias": None}
    manifest = Manifest(
        engine="onnxruntime", precision="fp32", config=model.config, preprocess=PREPROCESS, files={}, **scale
    )
    return ExportedCLIP(manifest, image_graph, text_graph, "fp32")


@pytest.mark.parametrize("form", [lambda model: optimize_for_inference(model, "fp32"), exported])
def test_every_form_of_a_model_gives_the_same_arrays(tiny_vit: CLIP, form: Callable[[CLIP], Any]) -> None:
    images = [picture(seed) for seed in range(5)]
    model = form(tiny_vit)
    for encode in (
        lambda of: encode_images(of, PREPROCESS, images, batch_size=2),
        lambda of: encode_texts(of, TEXTS, batch_size=4),
    ):
        expected, found = joined(encode(tiny_vit)), joined(encode(model))
        assert found[:2] == expected[:2]
        assert type(found[2]) is np.ndarray
        assert found[2].dtype == np.float32
        np.testing.assert_allclose(found[2], expected[2], atol=2e-6)


def test_an_exported_model_prepares_pictures_without_torchs_filter(tiny_vit: CLIP) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    _, _, embeddings = joined(encode_images(exported(tiny_vit), PREPROCESS, [pixels, Image.fromarray(pixels)]))
    np.testing.assert_array_equal(embeddings[0], embeddings[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_embeddings_come_from_the_gpu_to_the_host(tiny_vit: CLIP) -> None:
    expected = joined(encode_texts(tiny_vit, TEXTS))[2]
    found = joined(encode_texts(tiny_vit.cuda(), TEXTS))[2]
    assert type(found) is np.ndarray
    np.testing.assert_allclose(found, expected, atol=1e-4)  # other kernels


def test_features_of_either_kind_are_normalized_alike() -> None:
    features = torch.tensor([[3.0, 4.0], [0, 0], [torch.inf, 1], [1e-30, 0]], requires_grad=True)
    expected = normalized(features)
    np.testing.assert_array_equal(normalized(features.detach().numpy()), expected.detach().numpy())
    expected[0].sum().backward()
    assert features.grad is not None
    np.testing.assert_array_equal(as_array(features.bfloat16()), features.detach().bfloat16().float())


def test_nothing_gives_nothing(tiny_vit: CLIP) -> None:
    assert list(encode_images(tiny_vit, PREPROCESS, [])) == []
    assert list(encode_texts(tiny_vit, [])) == []


def test_bad_arguments_are_told_at_the_call(tiny_vit: CLIP) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        encode_texts(tiny_vit, [], batch_size=0)
    with pytest.raises(ConfigError, match="workers is 0"):
        encode_images(tiny_vit, PREPROCESS, [], workers=0)
    with pytest.raises(ConfigError, match="training mode"):
        encode_images(tiny_vit.train(), PREPROCESS, [])
