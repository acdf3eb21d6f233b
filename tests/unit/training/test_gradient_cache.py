"""Cached gradients equal those of one graph over the whole batch, with whatever the towers draw and count."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clip
from clip.errors import ConfigError, ShapeError
from clip.features import normalized
from clip.model import CLIP
from clip.training.gradient_cache import backward
from clip.training.losses import clip_loss, sigmoid_loss

# fp32: micro-batches go through other matrix products than the whole batch. Relative to a tensor's largest gradient.
TOLERANCE = 1e-5

Encode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Towers(nn.Module):
    """Both towers of a CLIP and the bias of the sigmoid loss."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model
        self.bias = nn.Parameter(torch.tensor(-3.0))
        self.calls: list[tuple[int, bool]] = []

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append((len(images), torch.is_grad_enabled()))
        return normalized(self.model.encode_image(images)), normalized(self.model.encode_text(texts))

    def softmax(self, images: Tensor, texts: Tensor) -> Tensor:
        return clip_loss(images, texts, self.model.logit_scale.exp(), tile_size=4)

    def sigmoid(self, images: Tensor, texts: Tensor) -> Tensor:
        return sigmoid_loss(images, texts, self.model.logit_scale.exp(), self.bias, tile_size=4)


def pairs(model: CLIP, count: int) -> tuple[Tensor, Tensor]:
    side = model.visual.input_resolution
    return torch.randn(count, 3, side, side), clip.tokenize(["a " + "very " * (i % 7) + "dog" for i in range(count)])


def in_one_graph(encode: Encode, images: Tensor, texts: Tensor, micro_batch_size: int) -> list[Tensor]:
    """The definition: micro-batches through the towers one after the other, in a graph that holds them all."""
    parts = zip(images.split(micro_batch_size), texts.split(micro_batch_size), strict=True)
    return [torch.cat(side) for side in zip(*(encode(*part) for part in parts), strict=True)]


def check_gradients(module: nn.Module, reference: nn.Module) -> None:
    expected = dict(reference.named_parameters())
    for name, parameter in module.named_parameters():
        wanted = expected[name].grad
        assert (parameter.grad is None) == (wanted is None), name
        if parameter.grad is not None and wanted is not None:
            error = (parameter.grad - wanted).abs().max().item()
            assert error <= TOLERANCE * max(wanted.abs().max().item(), 1e-3), (name, error)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 10, 64])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("tower", ["tiny_vit", "tiny_resnet"])
def test_gradients_are_those_of_the_whole_batch(
    tower: str, loss: str, micro_batch_size: int, request: pytest.FixtureRequest
) -> None:
    towers = Towers(request.getfixturevalue(tower))  # BatchNorms in eval mode
    reference = copy.deepcopy(towers)
    images, texts = pairs(towers.model, 10)
    expected = getattr(reference, loss)(*reference(images, texts))
    expected.backward()
    value = backward(towers, images, texts, getattr(towers, loss), micro_batch_size=micro_batch_size)
    assert not value.requires_grad
    assert value.item() == pytest.approx(expected.item(), rel=TOLERANCE)
    check_gradients(towers, reference)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_batch_norms_in_training_see_each_micro_batch_once(tiny_resnet: CLIP, loss: str) -> None:
    towers = Towers(tiny_resnet.train())
    reference, whole = copy.deepcopy(towers), copy.deepcopy(towers)
    images, texts = pairs(towers.model, 10)
    expected = getattr(reference, loss)(*in_one_graph(reference, images, texts, 4))
    expected.backward()
    value = backward(towers, images, texts, getattr(towers, loss), micro_batch_size=4)
    assert value.item() == pytest.approx(expected.item(), rel=TOLERANCE)
    check_gradients(towers, reference)
    for (name, buffer), (_, wanted) in zip(towers.named_buffers(), reference.named_buffers(), strict=True):
        assert torch.equal(buffer, wanted), name
    assert tiny_resnet.visual.bn1.num_batches_tracked == 3  # 4 + 4 + 2 rows, each counted once
    assert towers.model.training
    # With the statistics of the whole batch the result would be another one: the test can tell.
    assert getattr(whole, loss)(*whole(images, texts)).item() != pytest.approx(expected.item(), rel=1e-3)


def test_running_statistics_survive_an_error(tiny_resnet: CLIP) -> None:
    towers = Towers(tiny_resnet.train())
    images, texts = pairs(towers.model, 4)
    before = copy.deepcopy(dict(towers.named_buffers()))
    texts[3, 0] = -1  # no such token: the second micro-batch fails
    with pytest.raises(IndexError):
        backward(towers, images, texts, towers.softmax, micro_batch_size=2)
    assert all(torch.equal(before[name], buffer) for name, buffer in towers.named_buffers())


class Dropping(nn.Module):
    """Two towers that drop at random."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 8), nn.Dropout(0.2))
        self.text = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 8))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1)


def contrast(images: Tensor, texts: Tensor) -> Tensor:
    return clip_loss(images, texts, torch.tensor(10.0))


def test_dropout_is_drawn_again_alike() -> None:
    module = Dropping()
    reference = copy.deepcopy(module)
    images, texts = torch.randn(10, 6), torch.randn(10, 6)

    def loss(images: Tensor, texts: Tensor) -> Tensor:
        return contrast(F.dropout(images, 0.1), texts)  # draws as well, between the two passes

    torch.manual_seed(11)
    expected = loss(*in_one_graph(reference, images, texts, 4))
    expected.backward()
    after = torch.rand(3)
    torch.manual_seed(11)
    value = backward(module, images, texts, loss, micro_batch_size=4)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    check_gradients(module, reference)
    assert torch.equal(torch.rand(3), after)  # the generator goes on as after one pass
    assert backward(module, images, texts, loss, micro_batch_size=4).item() != pytest.approx(value.item(), rel=1e-6)


def test_patch_dropout_is_drawn_again_alike(tiny_vit: CLIP) -> None:
    towers = Towers(tiny_vit.train())
    towers.model.visual.patch_dropout = 0.5
    reference = copy.deepcopy(towers)
    images, texts = pairs(towers.model, 10)
    torch.manual_seed(12)
    reference.softmax(*in_one_graph(reference, images, texts, 4)).backward()
    torch.manual_seed(12)
    value = backward(towers, images, texts, towers.softmax, micro_batch_size=4)
    check_gradients(towers, reference)
    other = backward(towers, images, texts, towers.softmax, micro_batch_size=4)
    assert other.item() != pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("where", ["around", "in encode"])
def test_autocast_is_the_same_in_both_passes(tiny_vit: CLIP, where: str) -> None:
    """The first pass casts weights without a graph; autocast's cache must not hand those to the second."""
    towers = Towers(tiny_vit)
    reference = copy.deepcopy(towers)
    images, texts = pairs(towers.model, 8)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def cast(module: Towers) -> Encode:
        def encode(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
            with autocast():
                return module(images, texts)

        return encode

    with autocast():
        expected = reference.softmax(*in_one_graph(reference, images, texts, 3))
    expected.backward()
    with autocast() if where == "around" else contextlib.nullcontext():
        encode = towers if where == "around" else cast(towers)
        value = backward(encode, images, texts, towers.softmax, micro_batch_size=3, model=towers)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in reference.named_parameters():
        found = towers.get_parameter(name).grad
        assert (found is None) == (parameter.grad is None), name
        if parameter.grad is not None and found is not None:
            # Towers compute in bfloat16; sums over micro-batches round in another order.
            assert (found - parameter.grad).norm() <= 2e-2 * parameter.grad.norm() + 1e-6, name
            assert found.any() == parameter.grad.any(), name


@pytest.mark.parametrize("tower", ["tiny_vit", "tiny_resnet"])
def test_a_rank_without_rows_gives_zeros_to_every_parameter(tower: str, request: pytest.FixtureRequest) -> None:
    towers = Towers(request.getfixturevalue(tower).train())
    before = copy.deepcopy(dict(towers.named_buffers()))
    images, texts = pairs(towers.model, 2)
    value = backward(
        towers, images[:0], texts[:0], lambda a, b: a.sum() + b.sum() + 0 * towers.model.logit_scale, micro_batch_size=4
    )
    assert value.item() == 0
    for name, parameter in towers.named_parameters():
        assert name == "bias" or (parameter.grad is not None and not parameter.grad.any()), name
    assert all(torch.equal(before[name], buffer) for name, buffer in towers.named_buffers())
    assert all(module.training for module in towers.modules())


def test_micro_batches_without_rows_fill_up_to_the_others(tiny_resnet: CLIP) -> None:
    towers = Towers(tiny_resnet.train())
    reference = copy.deepcopy(towers)
    images, texts = pairs(towers.model, 5)
    reference.softmax(*in_one_graph(reference, images, texts, 3)).backward()
    contexts: list[bool] = []

    @contextlib.contextmanager
    def synchronize(is_last: bool) -> Iterator[None]:
        contexts.append(is_last)
        yield

    backward(towers, images, texts, towers.softmax, micro_batch_size=3, at_least=4, synchronize=synchronize)
    check_gradients(towers, reference)
    assert towers.calls == [(n, is_grad) for is_grad in (False, True) for n in (3, 2, 0, 0)]
    assert contexts == [False, False, False, False, True]  # the loss, then four micro-batches
    assert tiny_resnet.visual.bn1.num_batches_tracked == 2


def test_a_small_batch_runs_once(tiny_vit: CLIP) -> None:
    towers = Towers(tiny_vit)
    backward(towers, *pairs(towers.model, 6), towers.softmax, micro_batch_size=6)
    assert towers.calls == [(6, True)]


@pytest.mark.parametrize("locked", ["image", "text", "both"])
def test_locked_towers_get_no_gradients(tiny_vit: CLIP, locked: str) -> None:
    towers = Towers(tiny_vit)
    for name, parameter in towers.model.named_parameters():
        is_image = name.startswith("visual.")
        parameter.requires_grad_(name == "logit_scale" or locked == ("text" if is_image else "image"))
    reference = copy.deepcopy(towers)
    images, texts = pairs(towers.model, 6)
    reference.softmax(*reference(images, texts)).backward()
    backward(towers, images, texts, towers.softmax, micro_batch_size=4)
    assert towers.model.logit_scale.grad is not None
    check_gradients(towers, reference)


def test_gradients_are_added_to_those_there(tiny_vit: CLIP) -> None:
    towers = Towers(tiny_vit)
    images, texts = pairs(towers.model, 6)
    for _ in range(2):
        backward(towers, images, texts, towers.softmax, micro_batch_size=4)
    reference = copy.deepcopy(towers)
    reference.zero_grad()
    (2 * reference.softmax(*reference(images, texts))).backward()
    check_gradients(towers, reference)


def test_memory_is_that_of_a_micro_batch(tiny_vit: CLIP) -> None:
    """Counts the bytes that graphs keep: of tensors as they are saved until they are let go."""
    towers = Towers(tiny_vit)

    class Saved:
        held = peak = 0

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            Saved.held += tensor.nbytes
            Saved.peak = max(Saved.peak, Saved.held)

        def __del__(self) -> None:
            Saved.held -= self.tensor.nbytes

    def peak(count: int, micro_batch_size: int) -> int:
        Saved.peak = 0
        texts = clip.tokenize(["a dog"]).expand(count, -1)
        images = torch.zeros(count, 3, 32, 32)
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            backward(towers, images, texts, towers.softmax, micro_batch_size=micro_batch_size)
        assert Saved.held == 0
        return Saved.peak

    assert peak(64, 8) == peak(16, 8)
    assert peak(64, 64) > 3 * peak(64, 8)  # the weights that a graph keeps do not grow


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"texts": torch.zeros(2, 77, dtype=torch.int64)}, ShapeError, "3 images and 2 texts"),
        ({"micro_batch_size": 0}, ConfigError, "micro_batch_size is 0"),
        ({"encode": lambda images, texts: (images, texts)}, ConfigError, "pass model="),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_vit: CLIP, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    towers = Towers(tiny_vit)
    images, texts = pairs(towers.model, 3)
    arguments = {"encode": towers, "images": images, "texts": texts, "loss": towers.softmax, "micro_batch_size": 2}
    with pytest.raises(error, match=message):
        backward(**{**arguments, **change})
