"""Losses on 2 and 4 processes equal those of one process with the union of their batches, however it is divided.

Real processes talk over gloo. Each writes its values and its part of the gradients to a file; here they are put
together and compared with one process, which in turn ``test_losses.py`` compares with the whole matrix.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from clip.training import gradient_cache
from clip.training.losses import clip_loss, distillation_loss, sigmoid_loss

TOLERANCE = 1e-5
WIDTH = 8


class Case(NamedTuple):
    loss: str
    counts: tuple[int, ...]
    """Rows of each rank."""
    with_equal: bool = False
    tile_size: int = 3

    @property
    def name(self) -> str:
        return f"{self.loss} {'-'.join(map(str, self.counts))}{' equal' * self.with_equal} tiles of {self.tile_size}"


DIVISIONS = {2: [(6, 6), (7, 4), (5, 0), (0, 1)], 4: [(4, 4, 4, 4), (5, 4, 4, 3), (3, 0, 9, 1)]}
CASES = {
    world_size: [
        *(
            Case(loss, counts, equal)
            for loss in ("softmax", "sigmoid")
            for counts in divisions
            for equal in (False, True)
        ),
        *(Case("softmax", counts, tile_size=1024) for counts in divisions),
        *(Case("distillation", counts) for counts in divisions),
        *(Case("frozen rank", counts) for counts in divisions),
    ]
    for world_size, divisions in DIVISIONS.items()
}


def inputs(case: Case) -> dict[str, Tensor]:
    """The whole batch: embeddings come from inputs by way of a parameter, as in training."""
    generator = torch.Generator().manual_seed(sum(case.counts))
    count = sum(case.counts)
    texts = torch.randn(count, WIDTH, generator=generator)
    return {
        "images": texts + 0.5 * torch.randn(count, WIDTH, generator=generator),
        "texts": texts,
        "equal": torch.randint(0, max(1, count // 2), (count,), generator=generator),
    }


def parameters() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(WIDTH, WIDTH, generator=generator)
    values = {"weight": weight, "logit_scale": torch.tensor(3.0), "logit_bias": torch.tensor(-4.0)}
    return {name: value.requires_grad_() for name, value in values.items()}


def run(case: Case, rows: slice, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """The value and every gradient, of embeddings and of parameters, for some rows of the batch."""
    batch = {name: value[rows] for name, value in inputs(case).items()}
    weights = parameters()
    images, texts = (F.normalize(batch[name] @ weights["weight"], dim=-1) for name in ("images", "texts"))
    images.retain_grad()
    texts.retain_grad()
    options: dict[str, Any] = {
        "equal": batch["equal"] if case.with_equal else None,
        "tile_size": case.tile_size,
        "group": group,
    }
    scale = weights["logit_scale"].exp()
    if case.loss == "softmax":
        value = clip_loss(images, texts, scale, **options)
    elif case.loss == "sigmoid":
        value = sigmoid_loss(images, texts, scale, weights["logit_bias"], **options)
    elif case.loss == "distillation":
        value = distillation_loss(images, texts, group=group)
    else:  # the first rank has nothing to train, as one without rows may have; the others must not wait for it
        is_frozen = rows.start == 0
        images, texts, scale = (x.detach() if is_frozen else x for x in (images, texts, scale))
        value = clip_loss(images, texts, scale, **options)
        if is_frozen:
            assert not value.requires_grad
            return {"value": value}
    value.backward()
    gradients = {"images.grad": images.grad, "texts.grad": texts.grad}
    gradients |= {f"{name}.grad": weight.grad for name, weight in weights.items()}
    return {"value": value.detach(), **{name: x for name, x in gradients.items() if x is not None}}


def work(rank: int, world_size: int, folder: str) -> None:
    """One process: all cases in turn."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    results = {}
    for case in CASES[world_size]:
        first = sum(case.counts[:rank])
        results[case.name] = run(case, slice(first, first + case.counts[rank]), dist.group.WORLD)
    results["cache"] = cached(rank, world_size)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, (request.param, str(folder)), nprocs=request.param, start_method=START)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def test_value_and_gradients_equal_those_of_one_process(results: list[dict[str, Any]]) -> None:
    for case in CASES[len(results)]:
        if case.loss == "frozen rank":
            continue
        expected = run(case, slice(None), None)
        of_ranks = [result[case.name] for result in results]
        for found in of_ranks:
            assert torch.equal(found["value"], of_ranks[0]["value"]), case.name  # the same on every rank, to the bit
        assert of_ranks[0]["value"].item() == pytest.approx(expected["value"].item(), rel=TOLERANCE), case.name
        assert {"weight.grad"} <= expected.keys()
        for name in expected.keys() - {"value"}:
            parts = [found[name] for found in of_ranks]
            is_row_wise = name in ("images.grad", "texts.grad")
            whole = torch.cat(parts) if is_row_wise else torch.stack(parts).sum(dim=0)
            # What the scale's gradient adds up is of the order of the scale, 20, and cancels.
            largest = 1.0 if name == "logit_scale.grad" else expected[name].abs().max().item()
            error = (whole - expected[name]).abs().max().item()
            assert error <= TOLERANCE * max(largest, 1e-2), (case.name, name, error, largest)


def test_a_rank_without_anything_to_train_takes_part(results: list[dict[str, Any]]) -> None:
    for case in (case for case in CASES[len(results)] if case.loss == "frozen rank"):
        expected = run(case._replace(loss="softmax"), slice(None), None)
        for result, first in zip(results, torch.tensor((0, *case.counts)).cumsum(0).tolist(), strict=False):
            found = result[case.name]
            assert found["value"].item() == pytest.approx(expected["value"].item(), rel=TOLERANCE)
            if first > 0:
                rows = slice(first, first + len(found["texts.grad"]))
                torch.testing.assert_close(found["texts.grad"], expected["texts.grad"][rows], rtol=0, atol=TOLERANCE)


# Cached gradients under DistributedDataParallel -----------------------------------------------------------------------


class Towers(nn.Module):
    """Two linear towers; their parameters and the scalars are all used, so that DDP waits for each of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.image, self.text = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return (
            F.normalize(self.image(images) + 0 * self.logit_scale, dim=-1),
            F.normalize(self.text(texts), dim=-1),
        )


def cached(rank: int, world_size: int) -> dict[str, Tensor]:
    """Gradients that DDP left on this rank, which has 0, 5, 10 or 15 rows, in micro-batches of 4."""
    towers = Towers()
    ddp = nn.parallel.DistributedDataParallel(towers)
    case = Case("softmax", tuple(5 * r for r in range(world_size)))
    first = sum(case.counts[:rank])
    batch = {name: value[first : first + case.counts[rank]] for name, value in inputs(case).items()}
    value = gradient_cache.backward(
        ddp,
        batch["images"],
        batch["texts"],
        lambda images, texts: (
            world_size * clip_loss(images, texts, towers.logit_scale.exp(), tile_size=3, group=dist.group.WORLD)
        ),
        micro_batch_size=4,
        synchronize=lambda is_last: contextlib.nullcontext() if is_last else ddp.no_sync(),
    )
    gradients = {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}
    return {"value": value / world_size, **gradients}


def test_cached_gradients_under_ddp_equal_those_of_one_process(results: list[dict[str, Any]]) -> None:
    case = Case("softmax", tuple(5 * rank for rank in range(len(results))))
    batch = inputs(case)
    towers = Towers()
    value = clip_loss(*towers(batch["images"], batch["texts"]), towers.logit_scale.exp())
    value.backward()
    for result in results:
        found = result["cache"]
        assert found["value"].item() == pytest.approx(value.item(), rel=TOLERANCE)
        for name, parameter in towers.named_parameters():
            assert parameter.grad is not None
            error = (found[name] - parameter.grad).abs().max().item()
            assert error <= TOLERANCE, (name, error)


# A server forks workers with torch loaded: seconds less than starting each from nothing. Only Unix has it.
START = "forkserver" if os.name == "posix" else "spawn"
if START == "forkserver":
    mp.get_context(START).set_forkserver_preload(
        ["torch._dynamo", "torch.distributed", "clip.training.losses"]  # the first: DistributedDataParallel imports it
    )
