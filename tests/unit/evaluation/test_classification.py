"""Zero-shot classification measured: the classifier's own answers, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clip.errors import ConfigError, TextTooLongError
from clip.evaluation.classification import (
    class_embeddings,
    classification_of,
    evaluate_zero_shot,
    template_embeddings,
)
from clip.evaluation.datasets import Classes, EmbeddedSource, embed_source, labelled
from clip.evaluation.results import Predictions
from clip.evaluation.zero_shot import ZeroShotClassifier
from clip.features import normalized
from clip.model import CLIP
from clip.prompts import DEFAULT_TEMPLATES

Make = Callable[..., Any]
RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def predictions(logits: torch.Tensor, labels: list[int]) -> Predictions:
    n, k = logits.shape
    return Predictions(
        class_names=tuple(f"class {i}" for i in range(k)),
        keys=tuple(map(str, range(n))),
        rows=torch.arange(n),
        labels=torch.tensor(labels),
        logits=logits,
    )


def test_the_classes_are_those_of_the_classifier(tiny_vit: CLIP) -> None:
    names = ["owl", ["cat", "kitten", "tabby"], "a big, old tree", ["fox", "vixen"]]
    classifier = ZeroShotClassifier(tiny_vit, names)
    embeddings = normalized(torch.randn(9, 16))
    classes = Classes(
        synonyms=(("owl",), ("cat", "kitten", "tabby"), ("a big, old tree",), ("fox", "vixen")),
        labels=torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0]),
    )
    by_template = template_embeddings(tiny_vit, classes.synonyms, DEFAULT_TEMPLATES)
    assert np.allclose(class_embeddings(by_template), classifier.class_embeddings, atol=1e-6)
    data = EmbeddedSource(
        name="data",
        keys=tuple("abcdefghi"),
        rows=torch.arange(9),
        embeddings=embeddings,
        captions=((),) * 9,
        labels=None,
        class_names=(),
        failures=(),
    )
    result = evaluate_zero_shot(tiny_vit, data, classes)
    assert np.allclose(result.predictions.probabilities, classifier.scores(embeddings).probabilities, atol=1e-5)
    assert result.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
    assert result.prompts is not None
    for score, template in zip(result.prompts.templates, DEFAULT_TEMPLATES, strict=True):
        alone = ZeroShotClassifier(tiny_vit, names, [template]).scores(embeddings).cosines.argmax(axis=1)
        assert score.template == template
        assert score.top1.value == pytest.approx((alone == classes.labels.numpy()).mean())
    assert result.prompts.ensemble == result.measures[0]
    values = [score.top1.value for score in result.prompts.templates]
    assert result.prompts.spread == pytest.approx(max(values) - min(values))


def test_every_colour_is_found_and_a_wrong_label_is_not(colours: Any, plain: Any, pictures: Make, sample: Make) -> None:
    records = [
        sample("r1", RED, label=0),
        sample("r2", RED, label=0),
        "torn",
        sample("g1", GREEN, label=1),
        sample("g2", BLUE, label=1),
    ]
    data = embed_source(colours, plain, pictures(records, class_names=("red", "green", "blue")))
    result = evaluate_zero_shot(colours, data, labelled(data), ["{}"])
    measures = {measure.name: measure for measure in result.measures}
    assert list(measures) == ["top1", "mean_per_class"]  # among three, the first five cannot be missed
    assert measures["top1"].value == 3 / 4
    assert measures["top1"].chance == pytest.approx(1 / 3)
    assert measures["mean_per_class"].value == pytest.approx((1 + 1 / 2) / 2)
    assert result.confusion.tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert result.class_support.tolist() == [2, 2, 0]
    assert [result.most_taken_for(label) for label in range(3)] == [("", 0), ("blue", 1), ("", 0)]
    assert result.class_recall[:2].tolist() == [1, 0.5]
    assert result.majority == 0.5
    assert result.prompts is None  # one template has no spread
    assert result.calibration is None  # four pictures
    assert result.predictions.rows.tolist() == [0, 1, 3, 4]
    assert result.predictions.keys == ("r1", "r2", "g1", "g2")


def test_top5_appears_where_it_can_be_missed() -> None:
    logits = torch.eye(6).roll(1, dims=1)
    names = [measure.name for measure in classification_of(predictions(logits, list(range(6)))).measures]
    assert names == ["top1", "top5", "mean_per_class"]


def test_a_model_that_says_the_same_of_all_has_chance() -> None:
    result = classification_of(predictions(torch.zeros(40, 10), [i % 10 for i in range(40)]))
    assert [measure.value for measure in result.measures] == pytest.approx([0.1, 0.5, 0.1])
    assert [measure.chance for measure in result.measures] == [0.1, 0.5, 0.1]


def test_prompts_that_do_not_fit_and_templates_without_a_place_are_refused(colours: Any, pictures: Make) -> None:
    with pytest.raises(TextTooLongError, match="has 102 tokens with start and end, the context length is 77"):
        template_embeddings(colours, [("red " * 100,)], ["{}"])
    data = EmbeddedSource(
        name="data",
        keys=("a",),
        rows=torch.arange(1),
        embeddings=torch.eye(1, 3),
        captions=(("red",),),
        labels=None,
        class_names=(),
        failures=(),
    )
    with pytest.raises(ConfigError, match="'a photo' has no"):
        evaluate_zero_shot(
            colours, data, Classes(synonyms=(("red",), ("green",)), labels=torch.tensor([0])), ["a photo"]
        )
