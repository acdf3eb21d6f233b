"""Losses in tiles: the whole matrix in float64 is the reference, and what must not be held is looked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clip.errors import ConfigError, ShapeError
from clip.training.losses import clip_loss, distillation_loss, sigmoid_loss

# In fp32 a logit of 100 has steps of 8e-6, which the exponential hands on to the gradients.
TOLERANCE = 1e-5


def whole_clip_loss(images: Tensor, texts: Tensor, scale: Tensor, equal: Tensor | None = None) -> Tensor:
    logits = (scale * images @ texts.T).masked_fill(left_out(len(images), equal), -torch.inf)
    labels = torch.arange(len(images))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def whole_sigmoid_loss(
    images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, equal: Tensor | None = None
) -> Tensor:
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    losses = -F.logsigmoid(signs * (scale * images @ texts.T + bias))
    return losses.masked_fill(left_out(len(images), equal), 0).sum() / len(images)


def left_out(count: int, equal: Tensor | None) -> Tensor:
    if equal is None:
        return torch.zeros(count, count, dtype=torch.bool)
    return (equal[:, None] == equal) & ~torch.eye(count, dtype=torch.bool)


def batch(count: int, width: int = 16, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    texts = F.normalize(torch.randn(count, width), dim=-1)
    return F.normalize(texts + noise * torch.randn(count, width), dim=-1), texts


def check(
    loss: Callable[..., Tensor],
    whole: Callable[..., Tensor],
    inputs: list[Tensor],
    equal: Tensor | None,
    **options: Any,
) -> None:
    """Value and all gradients of ``loss`` are those of ``whole`` in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    expected = whole(*exact, equal)
    value = loss(*inputs, equal=equal, **options)
    (2 * expected).backward()  # a factor, as weights of losses and of world sizes are
    (2 * value).backward()
    assert value.item() == pytest.approx(expected.item(), rel=TOLERANCE, abs=TOLERANCE)
    for tensor, of_whole in zip(inputs, exact, strict=True):
        assert tensor.grad is not None and of_whole.grad is not None
        assert tensor.grad.dtype == torch.float32
        # Where probabilities nearly cancel, the error is that of what cancels: of scale / N, of a cosine.
        terms = 2 * inputs[2].item() / len(inputs[0]) if tensor.ndim else 2.0
        largest = max(of_whole.grad.abs().max().item(), terms)
        torch.testing.assert_close(tensor.grad.double(), of_whole.grad, rtol=0, atol=TOLERANCE * largest)


@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
@pytest.mark.parametrize(("count", "tile_size"), [(1, 1024), (2, 1), (33, 1024), (33, 8), (32, 8), (33, 33), (33, 32)])
@pytest.mark.parametrize("with_equal", [False, True])
def test_both_losses_are_those_of_the_whole_matrix(count: int, tile_size: int, scale: float, with_equal: bool) -> None:
    images, texts = batch(count)
    equal = torch.randint(0, max(1, count // 2), (count,)) if with_equal else None
    check(clip_loss, whole_clip_loss, [images, texts, torch.tensor(scale)], equal, tile_size=tile_size)
    inputs = [images, texts, torch.tensor(scale), torch.tensor(-5.0)]
    check(sigmoid_loss, whole_sigmoid_loss, inputs, equal, tile_size=tile_size)


@pytest.mark.parametrize("tile_size", [7, 1024])
@pytest.mark.parametrize("cosine", [-1.0, 0.0, 0.05], ids=["all cosines -1", "all cosines 0", "all cosines small"])
def test_nothing_underflows_at_scale_100(cosine: float, tile_size: int) -> None:
    """exp(100 · (cosine - 1)) is no float32: a fixed shift of 100, the largest possible logit, loses all of a row."""
    count, scale = 40, torch.tensor(100.0)
    direction = torch.zeros(count, 8)
    direction[:, 0] = 1
    images = cosine * direction
    images[:, 1] = (1 - cosine**2) ** 0.5
    texts = F.normalize(direction + 1e-3 * torch.randn(count, 8), dim=-1)
    assert torch.exp(scale * (images @ texts.T - 1)).max() < 1e-38  # the trap is set
    check(clip_loss, whole_clip_loss, [images, texts, scale], None, tile_size=tile_size)


def test_rows_and_columns_of_very_different_size_keep_their_own_largest_logit() -> None:
    images, texts = batch(48)
    texts[::3] *= -1  # these rows and columns lie far below the others
    check(clip_loss, whole_clip_loss, [images, texts, torch.tensor(100.0)], None, tile_size=16)


def test_a_perfect_model_has_no_loss_and_a_blind_one_the_logarithm_of_the_batch() -> None:
    one_hot = torch.eye(64)
    assert clip_loss(one_hot, one_hot, torch.tensor(100.0), tile_size=10).item() == 0
    same = F.normalize(torch.ones(64, 4), dim=-1)
    value = clip_loss(same, same, torch.tensor(100.0), tile_size=10)
    assert value.item() == pytest.approx(torch.tensor(64.0).log().item(), rel=1e-6)
    assert clip_loss(same[:1], same[:1], torch.tensor(100.0)).item() == 0  # a batch of one says nothing


def test_one_caption_for_all_leaves_nothing_to_tell_apart() -> None:
    images, texts = (x.requires_grad_() for x in batch(12))
    same = torch.full((12,), 7)
    value = clip_loss(images, texts, torch.tensor(50.0), equal=same, tile_size=5)
    value.backward()
    assert value.item() == 0
    assert images.grad is not None and not images.grad.any()


def test_ids_that_are_all_different_change_nothing() -> None:
    images, texts = batch(12)
    ids = torch.randperm(12)
    assert torch.equal(
        clip_loss(images, texts, torch.tensor(9.0), equal=ids), clip_loss(images, texts, torch.tensor(9.0))
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_show(bad: float) -> None:
    images, texts = batch(20)
    images[13, 2] = bad
    assert clip_loss(images, texts, torch.tensor(20.0), tile_size=6).isnan()
    assert not sigmoid_loss(images, texts, torch.tensor(20.0), torch.tensor(-5.0), tile_size=6).isfinite()


class Watch(TorchDispatchMode):
    """Remembers the most numbers that any operation gave, and counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numbers = max(self.numbers, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


@pytest.mark.parametrize("with_equal", [False, True])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_the_matrix_of_all_pairs_is_never_held(name: str, with_equal: bool) -> None:
    count, width, tile_size = 256, 4, 32
    inputs = [x.requires_grad_() for x in (*batch(count, width), torch.tensor(20.0), torch.tensor(-5.0))]
    loss = clip_loss if name == "softmax" else sigmoid_loss
    equal = torch.randint(0, 50, (count,)) if with_equal else None
    with Watch() as watch:
        loss(*inputs[: 3 if name == "softmax" else 4], equal=equal, tile_size=tile_size).backward()
    assert watch.numbers == max(count * width, tile_size**2)
    with Watch() as watch:
        whole_clip_loss(*inputs[:3]).backward()
    assert watch.numbers == count**2  # the measure sees it where it is


@pytest.mark.parametrize(
    ("trained", "products"), [("", 1), ("images", 3), ("texts", 3), ("scale", 3), ("images, texts, scale", 4)]
)
def test_no_gradient_is_computed_that_nobody_asks_for(trained: str, products: int) -> None:
    tensors = dict(zip(("images", "texts", "scale"), (*batch(64, 4), torch.tensor(20.0)), strict=True))
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in trained)
    with Watch() as watch:
        assert clip_loss(*tensors.values(), tile_size=16).requires_grad == bool(trained)
    assert watch.products == products * 4**2
    with Watch() as watch, torch.no_grad():
        assert not clip_loss(*tensors.values(), tile_size=16).requires_grad
    assert watch.products == 4**2


@pytest.mark.parametrize("trained", ["images", "texts", "scale", "bias", "texts, scale, bias"])
def test_each_input_may_be_trained_alone(trained: str) -> None:
    def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
        torch.manual_seed(1)
        images, texts = batch(20)
        tensors = {"images": images, "texts": texts, "scale": torch.tensor(20.0), "bias": torch.tensor(-5.0)}
        return {name: x.to(dtype).requires_grad_(name in trained.split(", ")) for name, x in tensors.items()}

    exact, tensors = inputs(torch.float64), inputs(torch.float32)
    whole_sigmoid_loss(*exact.values()).backward()
    sigmoid_loss(*tensors.values(), tile_size=6).backward()
    for name, tensor in tensors.items():
        expected = exact[name].grad
        assert (tensor.grad is None) == (expected is None)
        if expected is not None and tensor.grad is not None:
            torch.testing.assert_close(tensor.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_learned_scale_is_reached_through_its_exponential() -> None:
    images, texts = batch(20)
    logit_scale = torch.tensor(2.0, requires_grad=True)
    clip_loss(images, texts, logit_scale.exp()).backward()
    exact = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    whole_clip_loss(images.double(), texts.double(), exact.exp()).backward()
    assert logit_scale.grad is not None and exact.grad is not None
    assert logit_scale.grad.item() == pytest.approx(exact.grad.item(), rel=1e-5)


def test_a_scale_of_one_element_is_a_scalar() -> None:
    images, texts = batch(5)
    scale = torch.tensor([20.0], requires_grad=True)
    value = clip_loss(images, texts, scale)
    value.backward()
    assert value.shape == () and scale.grad is not None and scale.grad.shape == (1,)


def test_autocast_has_no_influence() -> None:
    def run() -> tuple[Tensor, Tensor | None]:
        torch.manual_seed(2)
        images, texts = (x.requires_grad_() for x in batch(40))
        value = clip_loss(images, texts, torch.tensor(100.0), tile_size=16)
        value.backward()
        return value, images.grad

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = run()
    assert torch.equal(plain[0], under_autocast[0])
    assert plain[1] is not None and under_autocast[1] is not None and torch.equal(plain[1], under_autocast[1])


def test_embeddings_in_bfloat16_get_gradients_in_bfloat16() -> None:
    images, texts = (x.bfloat16().requires_grad_() for x in batch(20))
    value = clip_loss(images, texts, torch.tensor(20.0))
    value.backward()
    assert value.dtype == torch.float32
    assert images.grad is not None and images.grad.dtype == torch.bfloat16
    expected = whole_clip_loss(images.double(), texts.double(), torch.tensor(20.0, dtype=torch.float64))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_bfloat16_gradients_leave_the_value_exact(name: str) -> None:
    scalars = [torch.tensor(30.0), torch.tensor(-5.0)][: 1 if name == "softmax" else 2]
    loss = clip_loss if name == "softmax" else sigmoid_loss

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        images, texts = (x.requires_grad_() for x in batch(100))
        value = loss(images, texts, *scalars, tile_size=32, gradient_dtype=dtype)
        value.backward()
        assert images.grad is not None
        return value, images.grad

    exact, half = run(torch.float32), run(torch.bfloat16)
    assert torch.equal(exact[0], half[0])
    assert not torch.equal(exact[1], half[1])
    error = (exact[1] - half[1]).norm() / exact[1].norm()
    assert error < 2**-8  # of the 8 bits of a bfloat16


def test_distillation_is_the_mean_of_one_minus_cosine() -> None:
    student = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    value = distillation_loss(student, teacher)
    (2 * value).backward()
    assert value.item() == pytest.approx((0 + 0.2 + 2) / 3)
    assert student.grad is not None and torch.allclose(student.grad, -2 * teacher / 3)
    assert teacher.grad is None
    with torch.no_grad():
        assert not distillation_loss(student, teacher).requires_grad


@pytest.mark.parametrize(
    ("images", "texts", "options", "error", "message"),
    [
        ((3, 4), (2, 4), {}, ShapeError, r"\(3, 4\), text embeddings \(2, 4\)"),
        ((3, 4), (3, 5), {}, ShapeError, r"\(3, 4\), text embeddings \(3, 5\)"),
        ((4,), (4,), {}, ShapeError, r"\(batch, embed_dim\)"),
        ((0, 4), (0, 4), {}, ShapeError, "no rows"),
        ((3, 4), (3, 4), {"equal": torch.zeros(4)}, ShapeError, r"\(4,\); the batch has 3"),
        ((3, 4), (3, 4), {"tile_size": 0}, ConfigError, "tile_size is 0"),
        ((3, 4), (3, 4), {"gradient_dtype": torch.float16}, ConfigError, "gradient_dtype is torch.float16"),
    ],
)
def test_what_does_not_fit_is_refused(
    images: tuple[int, ...], texts: tuple[int, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        clip_loss(torch.zeros(images), torch.zeros(texts), torch.tensor(1.0), **options)
    with pytest.raises(error, match=message):
        sigmoid_loss(torch.zeros(images), torch.zeros(texts), torch.tensor(1.0), torch.tensor(0.0), **options)


def test_scalars_and_teachers_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match="logit_bias has shape"):
        sigmoid_loss(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor(1.0), torch.zeros(2))
    with pytest.raises(ShapeError, match=r"the teacher's \(2, 5\)"):
        distillation_loss(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(ShapeError, match="no rows"):
        distillation_loss(torch.zeros(0, 4), torch.zeros(0, 4))
