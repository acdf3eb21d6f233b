"""What an evaluation found: numbers with their intervals, and the predictions of each picture that they come from.

The dataclasses are plain records, made by ``evaluate.evaluate``. Tensors lie on the CPU. ``to_dict`` gives the JSON
that ``clip evaluate --json`` prints: numbers and names, without the per-picture tensors. Row i of a ``Predictions`` is
the picture ``source[rows[i]]``, so that a page can show it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, Protocol

from torch import Tensor

from clip.inference.loading import Runtime
from clip.intervals import LEVEL

__all__ = [
    "CalibrationResult",
    "ClassificationResult",
    "Comparison",
    "Direction",
    "Evaluation",
    "FailedItem",
    "FewShotPoint",
    "FewShotResult",
    "Findings",
    "LinearProbeResult",
    "Measure",
    "Predictions",
    "PromptResult",
    "Reliability",
    "RetrievalResult",
    "SweepPoint",
    "TemplateScore",
]


class Findings(Protocol):
    """What ``Evaluation.probe`` holds: any result with measures and their meaning that turns into JSON."""

    @property
    def measures(self) -> tuple[Measure, ...]: ...

    @property
    def summary(self) -> tuple[Measure, ...]:
        """The measures that a table of one screen has room for."""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What the measures allow to be said, a sentence each."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number, and what is needed to judge it."""

    name: str
    """Key in JSON: ``top1``, ``recall@5``."""
    title: str
    """For people: "top-1 accuracy"."""
    value: float
    low: float
    high: float
    """The 95 % interval: where the number would lie for other pictures drawn from where these come from."""
    n: int
    """How many items it is computed from."""
    of: str
    """What is counted by ``n``: "images", "captions"."""
    chance: float | None = None
    """What guessing gives; None where the question makes no sense."""
    interval: Literal["wilson", "bootstrap"] = "bootstrap"
    is_share: bool = True
    """Whether it is a share, to be shown in percent."""
    lower_is_better: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "of": self.of,
            "chance": self.chance,
            "interval": self.interval,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FailedItem:
    """A record that could not be read or encoded, and is in none of the numbers."""

    key: str
    row: int
    """Its place in the source."""
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """What a classifier said about each of N pictures."""

    class_names: tuple[str, ...]
    keys: tuple[str, ...]
    """(N), names of the records."""
    rows: Tensor
    """(N,) int64, their places in the source."""
    labels: Tensor
    """(N,) int64, the true classes."""
    logits: Tensor
    """(N, K) float32; for zero-shot classification the cosines times the model's logit scale."""

    @property
    def probabilities(self) -> Tensor:
        """(N, K) float32, softmax of the logits."""
        return self.logits.softmax(dim=1)

    @property
    def predicted(self) -> Tensor:
        """(N,) int64, the class with the largest logit; among equals the first."""
        return self.logits.argmax(dim=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reliability:
    """How often pictures of each range of confidence are right (Guo et al. 2017); B bins of equal width."""

    edges: Tensor
    """(B + 1,), from 0 to 1."""
    count: Tensor
    """(B,) int64, pictures in the bin."""
    confidence: Tensor
    """(B,), mean of the largest probability; NaN in an empty bin."""
    accuracy: Tensor
    """(B,), share that is right; NaN in an empty bin."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "edges": _numbers(self.edges),
            "count": self.count.tolist(),
            "confidence": _numbers(self.confidence),
            "accuracy": _numbers(self.accuracy),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationResult:
    """Before and after temperature scaling: fitted on one half of the pictures, measured on the other."""

    temperature: float
    """The logits are divided by it; above 1 the model was too sure."""
    logit_scale: float | None
    """What to multiply cosines with for calibrated probabilities; None for classifiers without a scale."""
    fitted_on: int
    before: Reliability
    after: Reliability
    measures_before: tuple[Measure, ...]
    """Expected calibration error, negative log-likelihood and Brier score, on the second half."""
    measures_after: tuple[Measure, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "logit_scale": self.logit_scale,
            "fitted_on": self.fitted_on,
            "before": {**_by_name(self.measures_before), "reliability": self.before.to_dict()},
            "after": {**_by_name(self.measures_after), "reliability": self.after.to_dict()},
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TemplateScore:
    """Top-1 accuracy with one template alone."""

    template: str
    top1: Measure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """How much the accuracy hangs on the wording."""

    templates: tuple[TemplateScore, ...]
    """In the order given."""
    ensemble: Measure
    """Top-1 accuracy with all of them together."""

    @property
    def spread(self) -> float:
        """Best template less worst."""
        values = [score.top1.value for score in self.templates]
        return max(values) - min(values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ensemble": self.ensemble.to_dict(),
            "spread": self.spread,
            "templates": [{"template": score.template, "top1": score.top1.to_dict()} for score in self.templates],
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassificationResult:
    """Of N pictures among K classes."""

    predictions: Predictions
    measures: tuple[Measure, ...]
    """``top1``, ``top5`` where there are more than five classes, ``mean_per_class``."""
    confusion: Tensor
    """(K, K) int64: row the true class, column the predicted one."""
    class_recall: Tensor
    """(K,) share of each class that is found; NaN for a class without pictures."""
    templates: tuple[str, ...] = ()
    """Of the prompts; empty for a linear probe."""
    logit_scale: float | None = None
    calibration: CalibrationResult | None = None
    """None where there are too few pictures to fit on one half and measure on the other."""
    prompts: PromptResult | None = None
    """None with a single template."""

    @property
    def class_support(self) -> Tensor:
        """(K,) int64, how many pictures each class has."""
        return self.confusion.sum(dim=1)

    def most_taken_for(self, label: int) -> tuple[str, int]:
        """The name that pictures of a class are most often given wrongly, and how often; ("", 0) if they never are."""
        wrong = self.confusion[label].clone()
        wrong[label] = 0
        other = int(wrong.argmax())
        return (self.predictions.class_names[other], int(wrong[other])) if int(wrong[other]) else ("", 0)

    @property
    def majority(self) -> float:
        """Accuracy of always answering the most frequent class."""
        return float(self.class_support.max()) / max(int(self.class_support.sum()), 1)

    def to_dict(self) -> dict[str, Any]:
        names = self.predictions.class_names
        recalls = zip(names, _numbers(self.class_recall), self.class_support.tolist(), strict=True)
        return {
            "classes": len(names),
            **_by_name(self.measures),
            "majority": self.majority,
            "per_class": [{"class": name, "recall": recall, "n": n} for name, recall, n in recalls],
            "templates": list(self.templates),
            "prompts": self.prompts.to_dict() if self.prompts else None,
            "calibration": self.calibration.to_dict() if self.calibration else None,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Direction:
    """Retrieval one way: Q queries, each ranking all candidates."""

    ranks: Tensor
    """(Q,) float64, place of the best correct candidate counted from 1; the expected one where scores are equal."""
    best: Tensor
    """(Q, up to 10) int64, the first candidates of each query."""
    measures: tuple[Measure, ...]
    """``recall@1``, ``recall@5``, ``recall@10`` where there are more candidates than that, ``mrr``, ``median_rank``."""
    values: dict[str, Tensor]
    """Of each measure that is a mean: what it is the mean of, (Q,) float64."""
    groups: Tensor
    """(Q,) int64: queries of one group share a caption or an image, and are drawn together by the bootstrap."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RetrievalResult:
    """Images and distinct captions, each finding the other."""

    keys: tuple[str, ...]
    """Of the images."""
    rows: Tensor
    """(images,) int64, their places in the source."""
    captions: tuple[str, ...]
    """Distinct; captions that differ only in case and white space are one."""
    pairs: Tensor
    """(P, 2) int64: image, caption. What belongs together, and so counts as found."""
    image_to_text: Direction
    text_to_image: Direction

    def to_dict(self) -> dict[str, Any]:
        return {
            "images": len(self.keys),
            "captions": len(self.captions),
            "pairs": len(self.pairs),
            "image_to_text": _by_name(self.image_to_text.measures),
            "text_to_image": _by_name(self.text_to_image.measures),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """Accuracy on the validation split at one strength of the L2 penalty."""

    l2: float
    accuracy: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearProbeResult:
    """Logistic regression on the image embeddings."""

    classification: ClassificationResult
    """On the test pictures."""
    l2: float
    """The penalty that was best on the validation split."""
    sweep: tuple[SweepPoint, ...]
    """Ascending in ``l2``."""
    train_images: int
    """Including those of the validation split, on which it is fitted again."""
    validation_images: int

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.classification.to_dict(),
            "l2": self.l2,
            "train_images": self.train_images,
            "validation_images": self.validation_images,
            "sweep": [dataclasses.asdict(point) for point in self.sweep],
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FewShotPoint:
    """Top-1 accuracy of logistic regression on a few pictures a class, drawn several times."""

    shots: int
    accuracies: tuple[float, ...]
    """One for each draw."""
    top1: Measure
    """Their mean; the interval is over draws and test pictures."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FewShotResult:
    """Accuracy against pictures a class."""

    points: tuple[FewShotPoint, ...]
    """Ascending in ``shots``."""
    zero_shot: Measure | None
    """Top-1 accuracy on the same test pictures by class names alone."""
    l2: float

    def to_dict(self) -> dict[str, Any]:
        points = [
            {"shots": point.shots, "top1": point.top1.to_dict(), "accuracies": list(point.accuracies)}
            for point in self.points
        ]
        return {"zero_shot": self.zero_shot.to_dict() if self.zero_shot else None, "l2": self.l2, "points": points}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A model less another, picture by picture on the same pictures."""

    other: str
    """The model that is subtracted."""
    other_runtime: Runtime
    """What computed its features; may be what computed the first one's, or the whole of the difference."""
    measures: tuple[Measure, ...]
    """Differences of the measures of that name; ``chance`` is 0."""

    def to_dict(self) -> dict[str, Any]:
        return {"other": self.other, "other_runtime": dataclasses.asdict(self.other_runtime), **_by_name(self.measures)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Everything that ``clip evaluate`` found about one model; parts that were not asked for are None."""

    model: str
    runtime: Runtime
    """What computed its features: engine, precision, device."""
    data: str
    """Address of the test pictures; empty where only the generated probe was run."""
    task: str
    images: int
    """Pictures in the numbers."""
    failures: tuple[FailedItem, ...] = ()
    seed: int
    resamples: int
    """Of the bootstrap."""
    seconds: float
    train_data: str | None = None
    classification: ClassificationResult | None = None
    retrieval: RetrievalResult | None = None
    linear_probe: LinearProbeResult | None = None
    few_shot: FewShotResult | None = None
    comparison: Comparison | None = None
    probe: Findings | None = None

    def to_dict(self) -> dict[str, Any]:
        parts = {
            "classification": self.classification,
            "retrieval": self.retrieval,
            "linear_probe": self.linear_probe,
            "few_shot": self.few_shot,
            "comparison": self.comparison,
            "probe": self.probe,
        }
        return {
            "model": self.model,
            "runtime": dataclasses.asdict(self.runtime),
            "data": self.data,
            "train_data": self.train_data,
            "task": self.task,
            "images": self.images,
            "failed": [dataclasses.asdict(item) for item in self.failures],
            "level": LEVEL,
            "seed": self.seed,
            "resamples": self.resamples,
            "seconds": self.seconds,
            **{name: part.to_dict() for name, part in parts.items() if part is not None},
        }


def _by_name(measures: tuple[Measure, ...]) -> dict[str, Any]:
    return {measure.name: measure.to_dict() for measure in measures}


def _numbers(values: Tensor) -> list[float | None]:
    """As JSON holds them: NaN has no place there."""
    return [None if math.isnan(value) else value for value in values.tolist()]
