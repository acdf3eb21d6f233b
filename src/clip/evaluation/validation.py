"""What training watches: a source → a function of the model that gives a few numbers, without intervals.

Choosing a checkpoint by these numbers makes them too good. Report others, from pictures that chose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from clip.data.records import Source
from clip.evaluation import metrics
from clip.evaluation.classification import class_embeddings, template_embeddings
from clip.evaluation.datasets import embed_source, labelled
from clip.evaluation.evaluate import Task, tasks_of
from clip.evaluation.retrieval import embed_pairs, recalls
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.prompts import DEFAULT_TEMPLATES, checked_templates

__all__ = ["evaluator"]


def evaluator(
    source: Source,
    preprocess: Preprocess,
    *,
    name: str = "validation",
    task: Task = "auto",
    class_names: Sequence[str | Sequence[str]] = (),
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 64,
    workers: int | None = None,
    limit: int | None = None,
) -> Callable[[CLIP], dict[str, float]]:
    """A function that measures a model on a source, for ``training.loop.train(evaluators=...)``.

    It gives ``validation/top1``, ``validation/mean_per_class`` and ``validation/nll`` where there are classes,
    otherwise ``validation/image_to_text/recall@1`` and so on both ways; and always ``validation/images``, because
    pictures that cannot be read are left out. A model in training mode is measured in eval mode and put back.
    task: "auto", "classification" or "retrieval". limit: so many pictures, evenly spaced.
    """
    tasks = tasks_of(task, has_classes=bool(source.class_names or class_names), has_training=False)
    templates = checked_templates(templates)

    def measure(model: CLIP) -> dict[str, float]:
        was_training = model.training
        model.eval()
        try:
            data = embed_source(model, preprocess, source, batch_size=batch_size, workers=workers, limit=limit)
            numbers = {"images": float(len(data))}
            if "retrieval" in tasks:
                embedded = embed_pairs(model, data)
                numbers |= recalls(embedded.image_embeddings, embedded.text_embeddings, embedded.pairs)
            else:
                classes = labelled(data, class_names)
                embeddings = class_embeddings(template_embeddings(model, classes.synonyms, templates))
                logits = math.exp(model.logit_scale.item()) * data.embeddings @ embeddings.T
                hits = metrics.in_top(metrics.label_placings(logits, classes.labels), 1)
                numbers["top1"] = float(hits.mean())
                numbers["mean_per_class"] = float(metrics.mean_per_class(hits, classes.labels))
                numbers["nll"] = float(metrics.log_losses(logits, classes.labels).mean())
        finally:
            model.train(was_training)
        return {f"{name}/{key}": value for key, value in numbers.items()}

    return measure
