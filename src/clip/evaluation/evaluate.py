"""The whole of an evaluation: a model and a source in, an ``Evaluation`` out.

Each picture goes through the model once, whatever is measured. Nothing is chosen on the test pictures: templates and
class names come as they are, the penalty of the linear probe from training pictures, the temperature from one half for
the other.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from clip.data.records import Source
from clip.errors import ConfigError, DataError, choices
from clip.evaluation import metrics
from clip.evaluation.classification import evaluate_zero_shot
from clip.evaluation.datasets import declared_answers, embed_source, labelled, labelled_alike, read_answers
from clip.evaluation.intervals import paired_difference
from clip.evaluation.linear_probe import SHOTS, check_taught, evaluate_few_shot, evaluate_linear_probe, untaught
from clip.evaluation.results import (
    ClassificationResult,
    Comparison,
    Direction,
    Evaluation,
    FewShotResult,
    LinearProbeResult,
    Measure,
    RetrievalResult,
)
from clip.evaluation.retrieval import evaluate_retrieval
from clip.inference.loading import Model, runtime_of
from clip.preprocess import Preprocess
from clip.prompts import DEFAULT_TEMPLATES

__all__ = ["Task", "compare", "evaluate", "tasks_of"]

Task = Literal["auto", "classification", "retrieval", "linear-probe", "few-shot"]


def tasks_of(task: Task, *, has_classes: bool, has_training: bool) -> tuple[str, ...]:
    """What "auto" means for a source, and whether a task can be done. Raises ConfigError if not."""
    if task not in get_args(Task):
        raise ConfigError(f"task is {task!r}; it must be one of {choices(task, get_args(Task))}")
    if task in ("linear-probe", "few-shot"):
        if not has_training:
            raise ConfigError(f"task {task!r} needs training pictures; pass them as train (--train)")
        return ("classification", task)
    if task == "auto" and has_classes:
        return ("classification", "linear-probe", "few-shot") if has_training else ("classification",)
    if has_training:
        raise ConfigError("training pictures are for task 'linear-probe' or 'few-shot'; name one, or leave them out")
    return ("retrieval",) if task == "auto" else (task,)


def evaluate(
    model: Model,
    preprocess: Preprocess,
    source: Source,
    *,
    task: Task = "auto",
    train: Source | None = None,
    class_names: Sequence[str | Sequence[str]] = (),
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    shots: Sequence[int] = SHOTS,
    draws: int = 5,
    truncate: bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    limit: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str = "",
    advance: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Measures a model on a source.

    task: "auto" classifies where there are classes (with ``train`` also by linear probe and few shots), and otherwise
        retrieves. A source with captions only can be classified by them.
    class_names: see ``datasets.labelled``. truncate: cut captions that are too long, for retrieval.
    shots, draws: numbers of pictures a class, and how often they are drawn. limit: test pictures, evenly spaced.
    resamples, seed: of the bootstrap, and of all else that is drawn. advance: told of pictures done, for a bar.
    Raises DataError where the data do not fit the task, ConfigError for options that do not.
    """
    started = time.perf_counter()
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}; it must be at least 1")
    has_classes = bool(source.class_names or class_names)
    tasks = tasks_of(task, has_classes=has_classes, has_training=train is not None)
    if train is not None:
        _check_training(train, source, class_names, limit)
    data = embed_source(model, preprocess, source, batch_size=batch_size, workers=workers, limit=limit, advance=advance)
    failures = list(data.failures)
    classification: ClassificationResult | None = None
    retrieval: RetrievalResult | None = None
    linear_probe: LinearProbeResult | None = None
    few_shot: FewShotResult | None = None
    if "classification" in tasks:
        classes = labelled(data, class_names)
        classification = evaluate_zero_shot(model, data, classes, templates, resamples=resamples, seed=seed)
    if "retrieval" in tasks:
        retrieval, failed = evaluate_retrieval(model, data, truncate=truncate, resamples=resamples, seed=seed)
        failures += failed
    if train is not None and classification is not None:
        training = embed_source(model, preprocess, train, batch_size=batch_size, workers=workers, advance=advance)
        failures += training.failures
        _, training_classes = labelled_alike(data, training, class_names)
        if "linear-probe" in tasks:
            linear_probe = evaluate_linear_probe(
                training, training_classes, data, classes, resamples=resamples, seed=seed
            )
        if "few-shot" in tasks:
            few_shot = evaluate_few_shot(
                training,
                training_classes,
                data,
                classes,
                shots=shots,
                draws=draws,
                zero_shot=classification.measures[0],
                resamples=resamples,
                seed=seed,
            )
    return Evaluation(
        model=name,
        runtime=runtime_of(model),
        data=source.name,
        train_data=None if train is None else train.name,
        task=task,
        images=len(data),
        failures=tuple(failures),
        seed=seed,
        resamples=resamples,
        seconds=time.perf_counter() - started,
        classification=classification,
        retrieval=retrieval,
        linear_probe=linear_probe,
        few_shot=few_shot,
    )


def _check_training(train: Source, test: Source, class_names: Sequence[str | Sequence[str]], limit: int | None) -> None:
    """Raises DataError for a class that is tested and not taught, as far as that shows before pictures are encoded.

    A source may name more classes than it has pictures of: what is missing by name is looked for among the records.
    """
    training = declared_answers(train)
    classes = labelled_alike(declared_answers(test), training, class_names)
    if untaught(*classes):
        answers = read_answers(test, limit=limit)
        check_taught(train.name, test.name, *labelled_alike(answers, training, class_names))


def compare(one: Evaluation, other: Evaluation) -> Comparison:
    """How much better the first is than the other, item by item; both of the same records, classes and captions.

    They may be one model in two precisions or engines: then it is what that costs.

    Raises DataError if they are not, as when one model takes shorter captions than the other.
    """
    difference = functools.partial(paired_difference, resamples=one.resamples, seed=one.seed)
    measures: list[Measure] = []
    if one.classification is not None and other.classification is not None:
        ours, theirs = one.classification.predictions, other.classification.predictions
        _check_same((ours.keys, ours.class_names), (theirs.keys, theirs.class_names), one, other)
        hits, others = (metrics.in_top(metrics.label_placings(part.logits, part.labels), 1) for part in (ours, theirs))
        value, (low, high) = difference(hits, others)
        measures.append(_difference("top1", "top-1 accuracy", value, low, high, len(hits), "images"))
    if one.retrieval is not None and other.retrieval is not None:
        found, theirs_found = one.retrieval, other.retrieval
        _check_same((found.keys, found.captions), (theirs_found.keys, theirs_found.captions), one, other)
        for way, of, title in (
            ("image_to_text", "images", "image to text"),
            ("text_to_image", "captions", "text to image"),
        ):
            direction: Direction = getattr(found, way)
            for name, values in direction.values.items():
                others = getattr(theirs_found, way).values[name]
                value, (low, high) = difference(values, others, clusters=direction.groups)
                measures.append(_difference(f"{way}/{name}", f"{title} {name}", value, low, high, len(values), of))
    return Comparison(other=other.model, other_runtime=other.runtime, measures=tuple(measures))


def _difference(name: str, title: str, value: float, low: float, high: float, n: int, of: str) -> Measure:
    return Measure(name=name, title=title, value=value, low=low, high=high, n=n, of=of, chance=0.0)


def _check_same(ours: object, theirs: object, one: Evaluation, other: Evaluation) -> None:
    if ours != theirs:
        raise DataError(
            f"{one.model} and {other.model} were not measured on the same records ({one.images} and {other.images} "
            "images); leave out what one of them cannot read, or truncate long captions"
        )
