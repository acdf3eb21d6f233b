"""Retrieval with several captions an image and several images a caption, worked by hand and by brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clip.errors import DataError, ShapeError
from clip.evaluation import retrieval
from clip.evaluation.datasets import embed_source
from clip.evaluation.results import Measure
from clip.evaluation.retrieval import distinct_captions, evaluate_retrieval, find, recalls, retrieval_placings

Make = Callable[..., Any]
RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def by_name(measures: tuple[Measure, ...]) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


def test_captions_that_the_model_cannot_tell_apart_are_one() -> None:
    texts, pairs = distinct_captions([("a cat", "Red"), ("a dog", "A  CAT"), ("a dog", "a dog")])
    assert texts == ["a cat", "Red", "a dog"]
    assert pairs.tolist() == [[0, 0], [0, 1], [1, 2], [1, 0], [2, 2]]
    assert distinct_captions([])[1].shape == (0, 2)


def test_several_captions_and_several_images_worked_by_hand() -> None:
    # Similarities, set by hand through an identity on one side. Image 0 has captions 0 and 1, image 1 caption 2,
    # images 2 and 3 share caption 3.
    pairs = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 3], [3, 3]])
    scores = torch.tensor(
        [
            [0.1, 0.9, 0.2, 0.8],  # one of its two is first
            [0.5, 0.1, 0.4, 0.0],  # second
            [0.3, 0.2, 0.1, 0.0],  # last
            [0.0, 0.1, 0.2, 0.9],  # first
        ]
    )
    placed, best = retrieval_placings(torch.eye(4), scores.T, pairs)
    assert placed.above.tolist() == [0, 1, 3, 0]
    assert best[:, 0].tolist() == [1, 0, 0, 3]
    placed, _ = retrieval_placings(torch.eye(4), scores, pairs.flip(1))
    assert placed.above.tolist() == [2, 0, 0, 0]  # caption 3 finds image 3, one of its two


def test_recall_of_images_with_five_captions_is_that_of_any(
    colours: Any, plain: Any, pictures: Make, sample: Make
) -> None:
    records = [
        sample("r", RED, "blue", "green", "red", "nothing", "it is green"),
        sample("g", GREEN, "green sea", "a", "b", "c", "d"),
    ]
    data = embed_source(colours, plain, pictures(records))
    result, failures = evaluate_retrieval(colours, data)
    assert failures == ()
    assert len(result.captions) == 10
    found = by_name(result.image_to_text.measures)
    assert found["recall@1"].value == pytest.approx((1 + 1 / 3) / 2)  # three texts of green alone, one of them its own
    assert found["recall@1"].chance == pytest.approx(0.5)
    assert "recall@10" not in found
    backward = by_name(result.text_to_image.measures)
    assert list(backward) == ["recall@1", "mrr", "median_rank"]  # two images: the first five cannot be missed
    assert backward["recall@1"].n == 10
    assert backward["recall@1"].interval == "bootstrap"  # captions of one image hang together


def test_one_of_each_that_all_find_each_other(colours: Any, plain: Any, pictures: Make, sample: Make) -> None:
    source = pictures([sample("r", RED, "red"), sample("g", GREEN, "green"), sample("b", BLUE, "blue")])
    result, _ = evaluate_retrieval(colours, embed_source(colours, plain, source))
    for direction in (result.image_to_text, result.text_to_image):
        found = by_name(direction.measures)
        assert (found["recall@1"].value, found["mrr"].value, found["median_rank"].value) == (1, 1, 1)
        assert found["recall@1"].low < 0.5  # three are few
        assert direction.ranks.tolist() == [1, 1, 1]
        assert direction.best[:, 0].tolist() == [0, 1, 2]
    assert result.pairs.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_a_caption_of_two_images_finds_either(colours: Any, plain: Any, pictures: Make, sample: Make) -> None:
    records = [sample("r", RED, "red"), sample("b", BLUE, "Red "), sample("g", GREEN, "green")]
    result, _ = evaluate_retrieval(colours, embed_source(colours, plain, pictures(records)))
    assert result.captions == ("red", "green")
    assert by_name(result.text_to_image.measures)["recall@1"].value == 1
    assert result.image_to_text.groups.tolist() == [0, 0, 1]
    assert result.text_to_image.groups.tolist() == [0, 1]


def test_captions_that_do_not_fit_are_left_out_and_told(colours: Any, plain: Any, pictures: Make, sample: Make) -> None:
    long = "green " * 100
    records = [sample("r", RED, "red"), "torn", sample("g", GREEN, long), sample("b", BLUE, "blue", long)]
    data = embed_source(colours, plain, pictures(records))
    result, failures = evaluate_retrieval(colours, data)
    assert (result.keys, result.rows.tolist(), result.captions) == (("r", "b"), [0, 3], ("red", "blue"))
    assert result.pairs.tolist() == [[0, 0], [1, 1]]
    assert [item.key for item in failures] == ["g"]
    assert "tokens" in failures[0].reason
    whole, none = evaluate_retrieval(colours, data, truncate=True)
    assert (whole.keys, none) == (("r", "g", "b"), ())


def test_one_image_has_nothing_to_be_found_among(colours: Any, plain: Any, pictures: Make, sample: Make) -> None:
    with pytest.raises(DataError, match="1 images with 2 distinct captions; retrieval needs two"):
        evaluate_retrieval(colours, embed_source(colours, plain, pictures([sample("r", RED, "red", "rot")])))
    with pytest.raises(ShapeError, match="query 1 has no correct"):
        retrieval_placings(torch.eye(2), torch.eye(2), torch.tensor([[0, 0]]))
    with pytest.raises(ShapeError, match="no queries"):
        retrieval_placings(torch.zeros(0, 2), torch.eye(2), torch.zeros(0, 2, dtype=torch.int64))


def some_pairs(seed: int, images: int, texts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random embeddings, and pairs that leave nobody alone, with many sharing."""
    generator = torch.Generator().manual_seed(seed)
    image_embeddings = F.normalize(torch.randn(images, 6, generator=generator), dim=1)
    text_embeddings = F.normalize(torch.randn(texts, 6, generator=generator), dim=1)
    mask = torch.rand(images, texts, generator=generator) < 0.15
    mask[torch.arange(images), torch.arange(images) % texts] = True
    mask[torch.arange(texts) % images, torch.arange(texts)] = True
    return image_embeddings, text_embeddings, mask.nonzero()


def brute_force(queries: Tensor, candidates: Tensor, pairs: Tensor, k: int) -> float:
    """Recall@k by a loop, as the definition says it."""
    hits = 0
    for query in range(len(queries)):
        own = {match for owner, match in pairs.tolist() if owner == query}
        first = (candidates @ queries[query]).argsort(descending=True)[:k].tolist()
        hits += bool(own & set(first))
    return hits / len(queries)


@given(st.integers(0, 10_000), st.integers(2, 25), st.integers(2, 25))
@settings(deadline=None, max_examples=30)
def test_recall_is_that_of_brute_force_in_blocks_or_whole(seed: int, images: int, texts: int) -> None:
    image_embeddings, text_embeddings, pairs = some_pairs(seed, images, texts)
    found = recalls(image_embeddings, text_embeddings, pairs)
    for k in (1, 5, 10):
        if k < texts:
            expected = brute_force(image_embeddings, text_embeddings, pairs, k)
            assert found[f"image_to_text/recall@{k}"] == pytest.approx(expected)
        if k < images:
            expected = brute_force(text_embeddings, image_embeddings, pairs.flip(1), k)
            assert found[f"text_to_image/recall@{k}"] == pytest.approx(expected)
    blocks, retrieval._ELEMENTS_AT_ONCE = retrieval._ELEMENTS_AT_ONCE, 3 * texts
    try:
        assert recalls(image_embeddings, text_embeddings, pairs[torch.randperm(len(pairs))]) == pytest.approx(found)
    finally:
        retrieval._ELEMENTS_AT_ONCE = blocks


def test_the_order_of_images_and_captions_does_not_matter() -> None:
    image_embeddings, text_embeddings, pairs = some_pairs(1, 12, 20)
    images, texts = torch.randperm(12), torch.randperm(20)
    moved = torch.stack([images.argsort()[pairs[:, 0]], texts.argsort()[pairs[:, 1]]], dim=1)
    options = {"keys": (), "rows": torch.arange(12), "captions": (), "resamples": 100}
    one = find(image_embeddings, text_embeddings, pairs, **options)  # type: ignore[arg-type]
    other = find(image_embeddings[images], text_embeddings[texts], moved, **options)  # type: ignore[arg-type]
    for ours, theirs in ((one.image_to_text, other.image_to_text), (one.text_to_image, other.text_to_image)):
        assert [m.value for m in ours.measures] == pytest.approx([m.value for m in theirs.measures])
        chances = [[m.chance for m in direction.measures if m.chance is not None] for direction in (ours, theirs)]
        assert chances[0] == pytest.approx(chances[1])
