"""Configurations in processes of their own, and the figures made of their rounds. No time is asserted."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clip
from clip import samples
from clip.bench import measure as measuring
from clip.bench.flops import image_flops, text_flops
from clip.bench.measure import Probe, Report, cosine_text, measure
from clip.bench.random_weights import random_model
from clip.bench.worker import text_lengths
from clip.config import CLIPConfig
from clip.errors import ClipError, ConfigError, ModelNotFoundError
from clip.model import ModifiedResNet

TINY = CLIPConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=16,
    transformer_width=64,
    transformer_layers=1,
)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bench") / "tiny.safetensors"
    clip.save(random_model(TINY), path)
    return str(path)


@pytest.fixture(scope="module")
def report(model_file: str) -> Report:
    """One run for most tests here: it starts four processes."""
    rounds: list[None] = []
    found = measure(
        [model_file],
        batch_sizes=(3, 1),
        precisions=("fp32", "bf16", "int8"),
        rounds=3,
        seconds=0.002,
        threads=1,
        on_round=lambda: rounds.append(None),
    )
    assert len(rounds) == 3
    return found


def test_every_precision_at_every_batch_size(report: Report, model_file: str) -> None:
    found = [(m.model, m.engine, m.precision, m.device, m.batch_size) for m in report.measurements]
    assert found == [(model_file, "torch", p, "cpu", size) for p in ("fp32", "bf16") for size in (3, 1)]
    assert [note.partition(": left out: ")[0] for note in report.notes] == [model_file]  # torch has no int8
    assert "int8" in report.notes[0]


def test_ratios_are_taken_within_a_round(report: Report) -> None:
    first = {m.batch_size: m for m in report.measurements if m.precision == "fp32"}
    for m in report.measurements:
        for kind in ("images", "texts"):
            speed, other = getattr(m, kind), getattr(first[m.batch_size], kind)
            ratios = [a / b for a, b in zip(speed.rounds, other.rounds, strict=True)]
            assert len(ratios) == 3
            assert (speed.ratio, speed.ratio_low, speed.ratio_high) == (
                statistics.median(ratios),
                min(ratios),
                max(ratios),
            )
            assert speed.per_second == statistics.median(speed.rounds)
            assert speed.milliseconds == pytest.approx(1000 * m.batch_size / speed.per_second)
    assert all(m.images.ratio == m.texts.ratio == 1 for m in first.values())


def test_operations_a_second_and_their_share_of_the_ceiling(report: Report) -> None:
    for m in report.measurements:
        assert m.images.flops == pytest.approx(m.images.per_second * image_flops(TINY))
        texts = [text_flops(TINY, length) for length in text_lengths(m.batch_size, 77)]
        assert m.texts.flops == pytest.approx(m.texts.per_second * sum(texts) / m.batch_size)
        ceiling = report.ceilings[m.precision]
        assert ceiling is not None
        assert ceiling > 1e8
        assert m.images.ceiling_share == pytest.approx(m.images.flops / ceiling)


def test_memory_is_that_of_one_process_and_grows_with_the_batch(report: Report) -> None:
    by_size = {(m.precision, m.batch_size): m.memory_bytes for m in report.measurements}
    for precision in ("fp32", "bf16"):
        assert 50e6 < by_size[precision, 1] <= by_size[precision, 3] < 2e9


def test_precisions_are_compared_with_the_exact_model(report: Report) -> None:
    fp32, bf16 = (next(m.fidelity for m in report.measurements if m.precision == p) for p in ("fp32", "bf16"))
    assert fp32 is not None
    assert bf16 is not None
    assert fp32.images == fp32.texts == len(samples.pictures())
    assert 1 - fp32.image_cosine < 1e-9
    assert 1 - fp32.text_cosine < 1e-9
    assert fp32.changed_answers == 0
    assert 1e-9 < 1 - bf16.image_cosine < 1e-3


def test_the_report_is_plain_json(report: Report) -> None:
    stored = json.loads(json.dumps(report.to_dict()))
    assert list(stored) == ["machine", "ceilings", "measurements", "notes"]
    assert stored["machine"]["threads"] == 1
    assert stored["machine"]["torch"] == torch.__version__
    assert set(stored["measurements"][0]) == {
        *("model", "engine", "precision", "device", "batch_size"),
        *("images", "texts", "memory_bytes", "fidelity"),
    }
    assert stored["measurements"][0]["fidelity"]["changed_answers_share"] == 0


def test_random_weights_and_pictures_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" comes to one of the others, and is measured once."""
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    probe = Probe.of_files(sorted(tmp_path.iterdir()), ["cat", "dog"])
    assert probe.texts == ["a photo of a cat", "a photo of a dog"]
    monkeypatch.setattr(measuring, "_Process", _InThisProcess)
    found = measure(
        random=["tiny"], batch_sizes=[2], precisions=("auto", "fp32", "bf16"), rounds=1, seconds=1e-3, probe=probe
    )
    assert sorted(m.precision for m in found.measurements) == ["bf16", "fp32"]
    assert {m.model for m in found.measurements} == {"tiny (random)"}
    assert [(m.fidelity.images, m.fidelity.texts) for m in found.measurements if m.fidelity] == [(3, 2), (3, 2)]
    assert found.notes == []


def test_another_tokenizer_is_measured_and_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.safetensors"
    config = CLIPConfig.from_dict({**TINY.to_dict(), "vocab_size": 100, "context_length": 8})
    clip.save(random_model(config), path)
    monkeypatch.setattr(measuring, "_Process", _InThisProcess)
    found = measure([path], batch_sizes=[2], precisions=["fp32"], rounds=1, seconds=1e-3)
    assert found.measurements[0].fidelity is None
    assert found.measurements[0].texts.per_second > 0
    assert "trained with another tokenizer" in found.notes[0]


def test_what_loading_warns_of_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pt"
    clip.save(random_model(TINY), path, to="openai")
    state_dict = torch.load(path, weights_only=True)
    torch.save({f"module.{key}": value for key, value in state_dict.items()}, path)  # of someone's own training
    monkeypatch.setattr(measuring, "_Process", _InThisProcess)
    found = measure([path], batch_sizes=[1], precisions=["fp32", "bf16"], rounds=1, seconds=1e-3)
    assert len(found.measurements) == 2
    assert len(found.notes) == len([note for note in found.notes if "activation" in note]) == 1


class _InThisProcess:
    """The worker without its process."""

    def __init__(self, title: str, folder: Path, threads: int | None) -> None:
        from clip.bench.worker import _Worker

        self.worker = _Worker()

    def ask(self, task: str, **arguments: Any) -> Any:
        if task == "write_random":
            clip.save(random_model(TINY), arguments["path"])
            return None
        return json.loads(json.dumps(getattr(self.worker, task)(**arguments)))

    def __enter__(self) -> _InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        del self.worker


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": []}, "there is no model to measure"),
        ({"precisions": ["bf61"]}, "'bf61'; it must be one of bf16, "),
        ({"precisions": []}, "no precision to measure"),
        ({"batch_sizes": []}, "batch sizes"),
        ({"batch_sizes": [0]}, "at least 1"),
        ({"batch_sizes": [4, 4]}, "must be different"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(**{"models": ["pocket"], **arguments})


def test_pictures_and_labels_belong_together() -> None:
    with pytest.raises(ConfigError, match="no pictures"):
        Probe.of_files([], ["cat", "dog"])
    with pytest.raises(ConfigError, match="no labels"):
        Probe.of_files(["cat.jpg"], [])


def test_an_error_of_the_other_process_is_raised_here(tmp_path: Path) -> None:
    with measuring._Process("a model", tmp_path, None) as process:
        with pytest.raises(ModelNotFoundError, match="'gone' not found"):
            process.ask("fingerprint", name="gone")
        assert process.ask("limit", threads=1) is None  # and it goes on
        with pytest.raises(ClipError, match="a model: its process failed at 'nonsense': AttributeError"):
            process.ask("nonsense")


def test_a_process_that_was_killed_is_told(tmp_path: Path) -> None:
    with measuring._Process("a model", tmp_path, None) as process:
        process._process.kill()
        process._process.wait()
        with pytest.raises(ClipError, match="signal 9; if memory is short, measure fewer at once"):
            process.ask("fingerprint", name="pocket")


def test_a_random_resnet_uses_all_its_layers() -> None:
    resnet = CLIPConfig.from_dict(
        {
            **TINY.to_dict(),
            "vision_layers": (1, 1, 1, 1),
            "vision_width": 8,
            "vision_heads": 0,
            "vision_patch_size": None,
            "image_resolution": 64,
        }
    )
    before = torch.random.get_rng_state()
    model, again = random_model(resnet), random_model(resnet)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(model.visual, ModifiedResNet)
    assert not model.training
    assert model.visual.layer4[0].bn3.weight.abs().min() > 0
    assert (model.visual.layer4[0].bn3.running_var - 1).abs().max() > 0.01
    for value, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.5, "0.5000"),
        (0.99963, "0.9996"),
        (0.99994, "0.99994"),
        (0.9999949, "0.999995"),
        (1.0, "1.0000000"),
    ],
)
def test_cosines_have_the_digits_that_tell_them_from_one(value: float | None, text: str) -> None:
    assert cosine_text(value) == text


def test_measuring_imports_no_torch_into_the_asking_process() -> None:
    """It would be counted as memory of each model where the system passes a parent's peak on."""
    import subprocess

    code = "import sys, clip.bench.measure, clip.bench.worker; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_captions_have_7_to_21_tokens() -> None:
    lengths = text_lengths(64, 77)
    assert (min(lengths), max(lengths)) == (7, 21)
    assert lengths[:8] == text_lengths(8, 77)
    assert max(text_lengths(64, 9)) == 9
