"""Zero-shot classification, measured: accuracy among the classes, which are confused, and what the wording does to it.

The formula is that of ``zero_shot.ZeroShotClassifier``; here all pictures have been embedded before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clip.evaluation import metrics
from clip.evaluation.calibration import calibrate
from clip.evaluation.datasets import Classes, EmbeddedSource
from clip.evaluation.intervals import measured_share
from clip.evaluation.results import ClassificationResult, Measure, Predictions, PromptResult, TemplateScore
from clip.evaluation.zero_shot import embed_prompts
from clip.features import normalized
from clip.inference.loading import Model
from clip.prompts import DEFAULT_TEMPLATES, checked_templates, fill

__all__ = ["class_embeddings", "classification_of", "evaluate_zero_shot", "template_embeddings", "top1"]


def template_embeddings(
    model: Model, classes: Sequence[Sequence[str]], templates: Sequence[str], *, batch_size: int = 256
) -> Tensor:
    """(M, K, E) float32: for each template the class embeddings that it gives alone, of any norm.

    classes: K classes with their synonyms. Raises TextTooLongError for a prompt that does not fit.
    """
    prompts = [fill(template, name) for template in templates for names in classes for name in names]
    embeddings = torch.from_numpy(embed_prompts(model, prompts, batch_size=batch_size))
    by_name = embeddings.view(len(templates), -1, embeddings.shape[1])
    class_of = torch.tensor([i for i, names in enumerate(classes) for _ in names])
    return by_name.new_zeros(len(templates), len(classes), by_name.shape[2]).index_add_(1, class_of, by_name)


def class_embeddings(by_template: Tensor) -> Tensor:
    """(K, E) unit norm: the mean over templates (M, K, E) (Radford et al. 2021, section 3.1.4)."""
    return normalized(by_template.sum(dim=0))


def evaluate_zero_shot(
    model: Model,
    data: EmbeddedSource,
    classes: Classes,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    *,
    batch_size: int = 256,
    resamples: int = 1000,
    seed: int = 0,
) -> ClassificationResult:
    """Zero-shot classification of the pictures, its calibration, and the accuracy of each template alone."""
    templates = checked_templates(templates)
    by_template = template_embeddings(model, classes.synonyms, templates, batch_size=batch_size)
    scale = math.exp(model.logit_scale.item())
    logits = scale * data.embeddings @ class_embeddings(by_template).T  # (N, K)
    draws = {"resamples": resamples, "seed": seed}
    scores = [
        TemplateScore(template=template, top1=top1(data.embeddings @ normalized(own).T, classes.labels, **draws))
        for template, own in zip(templates, by_template, strict=True)
    ]
    return classification_of(
        Predictions(class_names=classes.names, keys=data.keys, rows=data.rows, labels=classes.labels, logits=logits),
        templates=templates,
        logit_scale=scale,
        prompts=PromptResult(templates=tuple(scores), ensemble=top1(logits, classes.labels, **draws))
        if len(templates) > 1
        else None,
        **draws,
    )


def classification_of(
    predictions: Predictions,
    *,
    templates: tuple[str, ...] = (),
    logit_scale: float | None = None,
    prompts: PromptResult | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> ClassificationResult:
    """What predictions are worth, however they were made."""
    logits, labels = predictions.logits, predictions.labels
    classes = len(predictions.class_names)
    placing = metrics.label_placings(logits, labels)
    hits = metrics.in_top(placing, 1)
    measured = functools.partial(measured_share, of="images", resamples=resamples, seed=seed)
    measures = [measured("top1", "top-1 accuracy", hits, chance=1 / classes)]
    if classes > 5:
        measures.append(measured("top5", "top-5 accuracy", metrics.in_top(placing, 5), chance=5 / classes))
    per_class = functools.partial(metrics.mean_per_class, labels=labels)
    measures.append(measured("mean_per_class", "mean per class", hits, chance=1 / classes, statistic=per_class))
    return ClassificationResult(
        predictions=predictions,
        measures=tuple(measures),
        confusion=metrics.confusion_matrix(predictions.predicted, labels, classes),
        class_recall=metrics.class_recall(hits, labels, classes),
        templates=templates,
        logit_scale=logit_scale,
        prompts=prompts,
        calibration=calibrate(logits, labels, logit_scale=logit_scale, resamples=resamples, seed=seed),
    )


def top1(logits: Tensor, labels: Tensor, *, resamples: int = 1000, seed: int = 0) -> Measure:
    """Top-1 accuracy of logits or cosines (N, K), with its interval."""
    hits = metrics.in_top(metrics.label_placings(logits, labels), 1)
    return measured_share(
        "top1", "top-1 accuracy", hits, of="images", chance=1 / logits.shape[1], resamples=resamples, seed=seed
    )
