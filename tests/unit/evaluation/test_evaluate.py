"""The whole of an evaluation: what "auto" measures, what is told, and two models beside each other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clip.errors import ConfigError, DataError
from clip.evaluation import probe
from clip.evaluation.evaluate import compare, evaluate, tasks_of
from clip.evaluation.results import Evaluation
from clip.evaluation.validation import evaluator
from clip.inference.exported import ExportedCLIP
from clip.inference.loading import Runtime
from clip.inference.optimized import optimize_for_inference
from clip.model import CLIP
from clip.preprocess import Preprocess

Make = Callable[..., Any]
NAMES = ("red", "green", "blue")


def shade(label: int, strength: int, other: int = 0) -> tuple[int, int, int]:
    red, green, blue = (strength if i == label else other for i in range(3))
    return red, green, blue


@pytest.fixture
def classified(pictures: Make, sample: Make) -> Any:
    """Thirty pictures, of which one in ten is named wrongly and one is torn."""
    records = [sample(f"{i}", shade(i % 3, 90 + i), label=(i + (i % 10 == 9)) % 3) for i in range(30)]
    records[4] = "4 is torn"
    return pictures(records, class_names=NAMES)


@pytest.fixture
def captioned(pictures: Make, sample: Make) -> Any:
    records = [sample(f"{i}", shade(i, 200), name, f"it is {name}") for i, name in enumerate(NAMES)]
    return pictures([*records, sample("wrong", shade(0, 200), "something blue")])


def test_auto_classifies_where_there_are_classes(colours: Any, plain: Any, classified: Any) -> None:
    done: list[int] = []
    result = evaluate(
        colours, plain, classified, templates=["{}", "so {}"], name="colours", resamples=100, advance=done.append
    )
    assert sum(done) == 30
    assert (result.images, result.task, result.data, result.model) == (29, "auto", "pictures", "colours")
    assert [(item.row, item.reason) for item in result.failures] == [(4, "4 is torn")]
    assert result.classification is not None
    assert result.classification.measures[0].value == pytest.approx(26 / 29)
    assert result.classification.calibration is not None
    assert (result.retrieval, result.linear_probe, result.few_shot) == (None, None, None)


def test_auto_retrieves_where_there_are_captions(colours: Any, plain: Any, captioned: Any) -> None:
    result = evaluate(colours, plain, captioned, resamples=100)
    assert result.classification is None
    assert result.retrieval is not None
    assert len(result.retrieval.captions) == 7
    found = {measure.name: measure.value for measure in result.retrieval.image_to_text.measures}
    # Three texts are as blue as each other, two of them the blue picture's own. The red picture that is called blue
    # finds the two red texts first, and then its own among the five others with 3/5.
    assert found["recall@1"] == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)
    assert found["recall@5"] == pytest.approx((1 + 1 + 1 + 3 / 5) / 4)


def test_captions_are_classes_on_request(colours: Any, plain: Any, pictures: Make, sample: Make) -> None:
    source = pictures([sample(name, shade(i, 200), name) for i, name in enumerate(NAMES)])
    for names, chance in (((), 1 / 3), (("blue", "green", "yellow", "red"), 1 / 4)):
        result = evaluate(colours, plain, source, task="classification", class_names=names, templates=["{}"])
        assert result.classification is not None
        assert result.classification.measures[0].value == 1
        assert result.classification.measures[0].chance == pytest.approx(chance)


def test_training_pictures_bring_probe_and_few_shots(
    colours: Any, plain: Any, classified: Any, pictures: Make, sample: Make
) -> None:
    names = ("blue", "red", "green")  # another order
    records = [sample(f"{i}", shade(i % 3, 150 + i), label=(i % 3 + 1) % 3) for i in range(12)]
    train = pictures([*records, "torn"], class_names=names, name="train")
    result = evaluate(colours, plain, classified, train=train, resamples=100, draws=2)
    assert result.linear_probe is not None
    assert result.few_shot is not None
    assert result.linear_probe.classification.measures[0].value == pytest.approx(26 / 29)
    assert [point.shots for point in result.few_shot.points] == [1, 2, 4]
    assert result.few_shot.zero_shot == result.classification.measures[0]  # type: ignore[union-attr]
    assert result.train_data == "train"
    assert [item.reason for item in result.failures] == ["4 is torn", "torn"]
    only = evaluate(colours, plain, classified, train=train, task="few-shot", resamples=100, draws=2)
    assert only.linear_probe is None
    assert only.few_shot == result.few_shot


def test_training_pictures_with_captions_find_their_classes(
    colours: Any, plain: Any, pictures: Make, sample: Make
) -> None:
    test = pictures([sample(name, shade(i, 200), name) for i, name in enumerate(NAMES)])
    train = pictures([sample(f"{i}", shade(i % 3, 150 + i), NAMES[i % 3].upper()) for i in range(9)])
    result = evaluate(colours, plain, test, train=train, task="linear-probe", resamples=100)
    assert result.linear_probe is not None
    assert result.linear_probe.classification.measures[0].value == 1


class Untouched:
    """A model that must not be asked anything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the model's {name} was asked for")


def test_what_training_does_not_teach_is_refused_before_a_picture_is_encoded(
    classified: Any, plain: Any, pictures: Make, sample: Make
) -> None:
    red, green, blue = (sample(name, shade(i, 200), label=i) for i, name in enumerate(NAMES))
    by_label = pictures([red, green], class_names=("red", "green"), name="train")
    by_caption = pictures([sample(name, shade(0, 200), name) for name in ("red", "green")], name="train")
    captions = pictures([sample(name, shade(0, 200), name) for name in ("torn", *NAMES)][1:])
    for train in (by_label, by_caption):
        for test in (classified, captions):
            with pytest.raises(DataError, match=r"train: has no pictures of 1 of the classes .* such as 'blue'"):
                evaluate(Untouched(), plain, test, train=train, task="few-shot")  # type: ignore[arg-type]
    codes = pictures([blue], class_names=("n1", "n2", "n3"), name="train")
    with pytest.raises(DataError, match="3 of 3 classes are not among the 4 class names"):
        evaluate(Untouched(), plain, classified, train=codes, class_names=[*NAMES, "x"])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="train: has no record that can be read"):
        evaluate(Untouched(), plain, captions, train=pictures(["torn"], name="train"), task="few-shot")  # type: ignore[arg-type]


def test_a_class_that_is_named_and_not_tested_needs_no_training(
    colours: Any, plain: Any, pictures: Make, sample: Make
) -> None:
    records = [sample(f"{i}", shade(i % 2, 90 + i), label=i % 2) for i in range(8)]
    test = pictures([*records, "torn"], class_names=NAMES)  # no blue one
    result = evaluate(colours, plain, test, train=pictures(records, class_names=NAMES[:2]), task="few-shot", draws=1)
    assert result.few_shot is not None
    assert result.few_shot.points[0].top1.chance == 1 / 2


def test_json_is_plain_and_holds_every_number(
    colours: Any, plain: Any, classified: Any, captioned: Any, pictures: Make, sample: Make
) -> None:
    train = pictures([sample(f"{i}", shade(i % 3, 150 + i), label=i % 3) for i in range(12)], class_names=NAMES)
    result = evaluate(colours, plain, classified, train=train, resamples=100, draws=2)
    other = evaluate(colours, plain, classified, train=train, resamples=100, draws=2, templates=["not {}"], name="b")
    value = dataclasses.replace(result, comparison=compare(result, other)).to_dict()
    text = json.dumps(value, allow_nan=False)
    assert json.loads(text) == value
    assert value["classification"]["top1"] == {
        **value["classification"]["top1"],
        "value": pytest.approx(26 / 29),
        "n": 29,
        "of": "images",
        "chance": pytest.approx(1 / 3),
        "interval": "wilson",
    }
    assert value["classification"]["calibration"]["before"]["reliability"]["accuracy"].count(None) > 0
    assert {"linear_probe", "few_shot", "comparison"} < set(value)
    assert "retrieval" not in value
    assert value["failed"] == [{"key": "record 4", "row": 4, "reason": "4 is torn"}]
    retrieved = evaluate(colours, plain, captioned, resamples=100).to_dict()
    assert json.loads(json.dumps(retrieved, allow_nan=False)) == retrieved
    assert set(retrieved["retrieval"]["image_to_text"]) == {"recall@1", "recall@5", "mrr", "median_rank"}


def test_the_same_seed_gives_the_same_numbers(colours: Any, plain: Any, classified: Any) -> None:
    one, same, other = (
        {**evaluate(colours, plain, classified, seed=seed, resamples=100).to_dict(), "seconds": 0} for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


class Blind(torch.nn.Module):
    """Sees every picture alike."""

    def __init__(self, colours: Any) -> None:
        super().__init__()
        self.colours = colours
        self.eval()

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name in ("colours", "_modules") else getattr(self.colours, name)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(pixels), 3)


def test_a_better_model_is_shown_as_better(colours: Any, plain: Any, classified: Any, captioned: Any) -> None:
    for source, first in ((classified, "top1"), (captioned, "image_to_text/recall@1")):
        seeing = evaluate(colours, plain, source, name="seeing", templates=["{}"], resamples=200)
        blind = evaluate(Blind(colours), plain, source, name="blind", templates=["{}"], resamples=200)  # type: ignore[arg-type]
        comparison = compare(seeing, blind)
        assert comparison.other == "blind"
        difference = comparison.measures[0]
        assert difference.name == first
        assert difference.value > 0.4
        assert difference.chance == 0
        back = compare(blind, seeing).measures[0]
        assert back.value == pytest.approx(-difference.value)
        if source is classified:
            assert difference.low > 0
    with pytest.raises(DataError, match="not measured on the same records"):
        compare(seeing, evaluate(colours, plain, captioned, limit=3, resamples=100))


# Forms of a model -----------------------------------------------------------------------------------------------------


class Exported(ExportedCLIP):
    """A model as another engine gives it: arrays in and out."""

    engine, precision = "openvino", "int8"

    def __init__(self, model: CLIP) -> None:
        self._model = model
        self.config, self.context_length, self.vocab_size = model.config, model.context_length, model.vocab_size
        self.logit_scale = np.float32(model.logit_scale.item())

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        assert isinstance(images, np.ndarray)
        return self._model.encode_image(torch.from_numpy(images)).detach().numpy()

    def encode_text(self, text: np.ndarray) -> np.ndarray:
        assert isinstance(text, np.ndarray)
        return self._model.encode_text(torch.from_numpy(text)).detach().numpy()


def numbers(value: Any) -> Any:
    """A result in JSON without what runs differ in by right: time and runtime; floats to five digits."""
    if isinstance(value, dict):
        return {key: numbers(part) for key, part in value.items() if key not in ("seconds", "runtime", "verdict")}
    if isinstance(value, list):
        return [numbers(part) for part in value]
    return pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value


def test_every_form_of_a_model_is_measured_alike_and_named(tiny_vit: CLIP, classified: Any, captioned: Any) -> None:
    preprocess = Preprocess(size=tiny_vit.config.image_resolution)
    forms: dict[Runtime, Any] = {
        Runtime("torch", "fp32", "cpu"): optimize_for_inference(tiny_vit, "fp32"),
        Runtime("openvino", "int8", "cpu"): Exported(tiny_vit),
    }
    for source in (classified, captioned):
        task = {"train": classified, "shots": (1,)} if source is classified else {}
        exact = evaluate(tiny_vit, preprocess, source, resamples=100, **task)  # type: ignore[arg-type]
        assert exact.runtime == Runtime("torch", "fp32", "cpu")
        for runtime, form in forms.items():
            result = evaluate(form, preprocess, source, resamples=100, **task)  # type: ignore[arg-type]
            assert result.runtime == runtime
            assert result.to_dict()["runtime"] == dataclasses.asdict(runtime)
            assert result.to_dict() == numbers(exact.to_dict()) | {
                "runtime": dataclasses.asdict(runtime),
                "seconds": result.seconds,
            }


def test_every_form_of_a_model_is_probed_alike(tiny_vit: CLIP) -> None:
    preprocess = Preprocess(size=tiny_vit.config.image_resolution)
    exact, packed, exported = (
        probe.run(form, preprocess, kinds=["colour"], count=5).to_dict()["kinds"]["colour"]
        for form in (tiny_vit, optimize_for_inference(tiny_vit, "fp32"), Exported(tiny_vit))
    )
    assert packed == exact
    assert exported == exact


def test_two_precisions_of_one_model_are_compared_and_told_apart(tiny_vit: CLIP, captioned: Any) -> None:
    preprocess = Preprocess(size=tiny_vit.config.image_resolution)
    one, other = (
        evaluate(optimize_for_inference(tiny_vit, precision), preprocess, captioned, name="tiny", resamples=100)
        for precision in ("bf16", "fp32")
    )
    assert isinstance(one, Evaluation)
    comparison = compare(one, other)
    assert (one.runtime.precision, comparison.other_runtime.precision) == ("bf16", "fp32")
    assert comparison.to_dict()["other_runtime"] == {"engine": "torch", "precision": "fp32", "device": "cpu"}
    assert all(abs(measure.value) <= 0.5 for measure in comparison.measures)


@pytest.mark.parametrize(
    ("task", "has_classes", "has_training", "expected"),
    [
        ("auto", True, False, ("classification",)),
        ("auto", True, True, ("classification", "linear-probe", "few-shot")),
        ("auto", False, False, ("retrieval",)),
        ("retrieval", True, False, ("retrieval",)),
        ("classification", False, False, ("classification",)),
        ("few-shot", False, True, ("classification", "few-shot")),
    ],
)
def test_tasks(task: Any, has_classes: bool, has_training: bool, expected: tuple[str, ...]) -> None:
    assert tasks_of(task, has_classes=has_classes, has_training=has_training) == expected


@pytest.mark.parametrize(
    ("task", "has_classes", "has_training", "message"),
    [
        ("linear-probe", True, False, "needs training pictures"),
        ("auto", False, True, "training pictures are for"),
        ("retrieval", True, True, "training pictures are for"),
        ("few-shots", True, True, "must be one of few-shot, auto"),
    ],
)
def test_tasks_that_cannot_be_done(task: Any, has_classes: bool, has_training: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks_of(task, has_classes=has_classes, has_training=has_training)


# What training watches ------------------------------------------------------------------------------------------------


def test_the_evaluator_of_training_gives_the_same_numbers(
    colours: Any, plain: Any, classified: Any, captioned: Any
) -> None:
    full = evaluate(colours, plain, classified, resamples=100)
    numbers = evaluator(classified, plain)(colours)
    assert list(numbers) == [f"validation/{key}" for key in ("images", "top1", "mean_per_class", "nll")]
    assert numbers["validation/images"] == 29
    assert full.classification is not None
    measures = {measure.name: measure.value for measure in full.classification.measures}
    for name in ("top1", "mean_per_class"):
        assert numbers[f"validation/{name}"] == pytest.approx(measures[name])
    numbers = evaluator(captioned, plain, name="val")(colours)
    assert numbers["val/image_to_text/recall@1"] == pytest.approx(2 / 3)
    assert {"val/text_to_image/recall@1", "val/image_to_text/recall@5", "val/images"} < set(numbers)


def test_the_evaluator_leaves_the_model_as_it_was(colours: Any, plain: Any, classified: Any, pictures: Make) -> None:
    before = torch.get_rng_state()
    colours.train()
    evaluator(classified, plain, limit=6)(colours)
    assert colours.training
    with pytest.raises(DataError):
        evaluator(pictures(["torn"], class_names=NAMES), plain)(colours)
    assert colours.training
    colours.eval()
    evaluator(classified, plain, limit=6)(colours)
    assert not colours.training
    assert torch.equal(before, torch.get_rng_state())  # or resuming would draw other numbers
    with pytest.raises(ConfigError, match="needs training"):
        evaluator(classified, plain, task="linear-probe")
