from __future__ import annotations

import itertools
import math

import pytest
import torch
from colours import new_model
from torch import nn

from clip.model import CLIP
from clip.training.config import TrainConfig
from clip.training.optimizer import (
    TEXT_TOWER,
    adamw,
    average_weights_,
    clip_gradients_,
    is_decayed,
    learning_rate,
    lock_tower,
)


@pytest.mark.parametrize("kind", ["tiny_vit", "tiny_resnet"])
def test_gains_biases_and_scalars_are_not_decayed(kind: str, request: pytest.FixtureRequest) -> None:
    model: CLIP = request.getfixturevalue(kind)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = adamw(model, TrainConfig(steps=1))
    plain = {names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert plain | decayed == set(names.values())
    assert "logit_scale" in plain
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    gains = {
        f"{name}.{kind}" for name, m in model.named_modules() if isinstance(m, norms) for kind in ("weight", "bias")
    }
    assert gains < plain
    assert {name for name in names.values() if name.endswith("bias")} < plain
    assert {"token_embedding.weight", "positional_embedding", "text_projection"} < decayed
    assert all(("weight" in name and model.get_parameter(name).ndim > 1) or "proj" in name or "embedding" in name
               for name in decayed)  # fmt: skip


def test_is_decayed_by_shape_and_name() -> None:
    assert is_decayed("transformer.resblocks.0.attn.in_proj_weight", torch.ones(3, 2))
    assert not is_decayed("transformer.resblocks.0.attn.in_proj_bias", torch.ones(3))
    assert not is_decayed("visual.class_embedding", torch.ones(3))


def test_defaults_are_the_papers(tiny_vit: CLIP, tiny_resnet: CLIP) -> None:
    vit, resnet = (adamw(model, TrainConfig(steps=1)).defaults for model in (tiny_vit, tiny_resnet))
    assert (vit["betas"], vit["eps"]) == ((0.9, 0.98), 1e-6)
    assert (resnet["betas"], resnet["eps"]) == ((0.9, 0.999), 1e-8)
    assert TrainConfig(steps=1).weight_decay == 0.2


def test_the_schedule() -> None:
    config = TrainConfig(steps=110, learning_rate=2.0, warmup_steps=10)
    rates = [learning_rate(step, config, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)  # half of the cosine
    assert rates[110] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(("steps", "warmup"), [(5, 0), (100, 10), (1_000_000, 2000)])
def test_warm_up_is_derived(steps: int, warmup: int) -> None:
    config = TrainConfig(steps=steps, learning_rate=1.0)
    assert learning_rate(warmup, config, steps) == 1.0
    if warmup:
        assert learning_rate(warmup - 1, config, steps) == 1.0
        assert learning_rate(0, config, steps) == 1 / warmup


def test_gradients_are_scaled_to_the_length_together() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor(4.0)
    assert clip_gradients_(parameters, 1.0) == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.0])
    assert float(parameters[1].grad) == pytest.approx(0.8)
    assert clip_gradients_(parameters, 2.0) == pytest.approx(1.0)
    assert float(parameters[1].grad) == pytest.approx(0.8)  # short enough already


@pytest.mark.parametrize("longest", [None, 0.0])
def test_gradients_may_stay_as_they_are(longest: float | None) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([7.0])
    assert clip_gradients_([parameter], longest) == 7.0
    assert parameter.grad.tolist() == [7.0]
    assert clip_gradients_([nn.Parameter(torch.zeros(1))], longest) == 0.0


def test_a_gradient_that_is_not_finite_shows() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([math.inf])
    assert clip_gradients_([parameter], 1.0) == math.inf


def test_the_average_follows_and_begins_quickly() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = {"weight": torch.zeros(1, 1)}
    nn.init.ones_(model.weight)
    average_weights_(average, model, 0.9, step=0)
    assert float(average["weight"]) == pytest.approx(0.9)  # 1 - (1 + 0) / (10 + 0)
    average_weights_(average, model, 0.9, step=10_000)
    assert float(average["weight"]) == pytest.approx(0.91)


def test_locking_names_every_parameter_of_a_tower() -> None:
    model = new_model()
    names = {name for name, _ in model.named_parameters()}
    for lock, trained in (
        ("none", names),
        ("image", {name for name in names if name.startswith(TEXT_TOWER)} | {"logit_scale"}),
        ("text", {name for name in names if name.startswith("visual.")} | {"logit_scale"}),
    ):
        lock_tower(model, lock)
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert {name for name in names if not name.startswith(("visual.", *TEXT_TOWER))} == {"logit_scale"}
