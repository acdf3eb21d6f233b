from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip.errors import ImageError, TextTooLongError
from clip.features import encode_images
from clip.images import read_pixels
from clip.moderation.calibration import SHARE, Curve, curve_of
from clip.moderation.policy import Category, Exemption, Policy, Target
from clip.moderation.scores import Scorer, Seen, judged
from clip.simple_tokenizer import token_ids

GUNS = Category(name="guns", prompts=("gun",), threshold=0.5)
BEER = Category(name="beer", prompts=("beer",), threshold=0.5)

WHOLE, TILE, CROP = Seen("whole", "whole", 0), Seen("a tile", "tile", 0), Seen("a crop", "crop", 0)


def policy(*categories: Category, **options: Any) -> Policy:
    return Policy(name="test", categories=categories, **options)


@pytest.fixture
def scorer_of(model: Any, preprocess: Any) -> Callable[..., Scorer]:
    return lambda *categories, **options: Scorer.of(policy(*categories, **options), model, preprocess)


@pytest.fixture
def seen(model: Any, preprocess: Any, picture: Callable[..., bytes]) -> Callable[..., np.ndarray]:
    """Things → the embedding of their picture, (1, E)."""

    def embed(*things: str) -> np.ndarray:
        return next(iter(encode_images(model, preprocess, [read_pixels(picture(*things))]))).embeddings

    return embed


def evidence(scorer: Scorer, embedding: np.ndarray) -> np.ndarray:
    return scorer.looks(embedding).evidence[0]


# Contests -------------------------------------------------------------------------------------------------------------


def test_pictures_belong_to_what_they_show(scorer_of: Any, seen: Any) -> None:
    scorer = scorer_of(GUNS, BEER)
    for thing, likely, unlikely in (("gun", 0, 1), ("beer", 1, 0)):
        scores = [scorer.score(value) for value in evidence(scorer, seen(thing))]
        assert scores[likely] > 0.95 and scores[unlikely] < 0.01
    assert max(map(scorer.score, evidence(scorer, seen("tree")))) < 0.01


def test_half_a_gun_says_less_than_a_whole_one(scorer_of: Any, seen: Any) -> None:
    scorer = scorer_of(GUNS)
    whole, half, none = (evidence(scorer, seen(*things))[0] for things in (("gun",), ("gun", "tree"), ("tree",)))
    assert whole > half > none


def test_a_counter_prompt_that_fits_lowers_the_score(scorer_of: Any, seen: Any) -> None:
    alone, against = scorer_of(GUNS), scorer_of(dataclasses.replace(GUNS, counter_prompts=("toy",)))
    both = seen("gun", "toy")
    assert evidence(against, both)[0] < evidence(alone, both)[0] - 0.3
    assert against.score(evidence(against, seen("gun"))[0]) > 0.95  # where it does not fit it does no harm


def test_background_prompts_of_the_policy_compete(scorer_of: Any, seen: Any) -> None:
    both = seen("gun", "museum")
    assert evidence(scorer_of(GUNS, background=("museum",)), both)[0] < evidence(scorer_of(GUNS), both)[0] - 0.3


def test_a_category_does_not_compete_with_itself(scorer_of: Any, seen: Any) -> None:
    """ "a tree" is among the neutral prompts."""
    scorer = scorer_of(Category(name="trees", prompts=("A  Tree",), threshold=0.5))
    assert scorer.score(evidence(scorer, seen("tree"))[0]) > 0.95
    assert scorer.score(evidence(scorer, seen("gun"))[0]) < 0.05


def test_examples_say_what_words_do(scorer_of: Any, seen: Any, picture: Callable[..., bytes], tmp_path: Path) -> None:
    for thing in ("gun", "toy"):
        (tmp_path / f"{thing}.png").write_bytes(picture(thing))
    gun, toy = str(tmp_path / "gun.png"), str(tmp_path / "toy.png")
    by_example = scorer_of(Category(name="guns", prompts=("pistol",), examples=(gun,), threshold=0.5))
    found = by_example.looks(seen("gun"))
    assert by_example.score(found.evidence[0, 0]) > 0.9
    assert by_example.contests[0].names[found.word[0, 0]] == gun
    assert by_example.score(evidence(by_example, seen("tree"))[0]) < 0.05

    against = scorer_of(dataclasses.replace(GUNS, counter_examples=(toy,)))
    assert evidence(against, seen("gun", "toy"))[0] < evidence(scorer_of(GUNS), seen("gun", "toy"))[0] - 0.3


def test_an_example_does_not_drown_the_words(
    scorer_of: Any, seen: Any, picture: Callable[..., bytes], tmp_path: Path
) -> None:
    """Two pictures have a larger cosine than a picture and the text that fits it."""
    path = tmp_path / "beer.png"
    path.write_bytes(picture("beer"))
    scorer = scorer_of(Category(name="vices", prompts=("gun",), examples=(str(path),), threshold=0.5))
    found = scorer.looks(seen("gun"))
    assert scorer.contests[0].names[found.word[0, 0]] == "gun"
    assert scorer.score(found.evidence[0, 0]) > 0.5 > scorer.score(evidence(scorer, seen("tree"))[0])


def test_the_prompt_that_fits_best_is_named(scorer_of: Any, seen: Any) -> None:
    scorer = scorer_of(Category(name="vices", prompts=("beer", "gun"), threshold=0.5))
    assert [scorer.contests[0].names[scorer.looks(seen(thing)).word[0, 0]] for thing in ("gun", "beer")] == [
        "gun",
        "beer",
    ]


def test_exemptions_fit_better_than_the_category_or_not(scorer_of: Any, seen: Any) -> None:
    exemptions = (Exemption(path="*.svg"), Exemption(prompts=("museum", "shop")), Exemption(prompts=("toy",)))
    scorer = scorer_of(dataclasses.replace(GUNS, exemptions=exemptions), BEER)
    for things, expected in (
        (("gun",), -1),
        (("gun", "museum", "museum"), 1),
        (("gun", "toy", "toy"), 2),
        (("gun", "gun", "toy"), -1),
    ):
        assert scorer.looks(seen(*things)).exemption.tolist() == [[expected, -1]]


def test_the_order_of_categories_makes_no_difference(scorer_of: Any, seen: Any) -> None:
    one, other = scorer_of(GUNS, BEER), scorer_of(BEER, GUNS)
    np.testing.assert_allclose(
        evidence(one, seen("gun", "beer")), evidence(other, seen("gun", "beer"))[::-1], rtol=1e-6
    )


def test_a_category_stays_as_it_is_beside_others(scorer_of: Any, seen: Any) -> None:
    assert evidence(scorer_of(GUNS), seen("gun"))[0] == pytest.approx(evidence(scorer_of(GUNS, BEER), seen("gun"))[0])


def test_templates_are_averaged_at_unit_norm(scorer_of: Any, model: Any) -> None:
    scorer = scorer_of(GUNS, templates=("{}", "{} very long words of all kinds"))
    rows = model.encode_text(token_ids(["gun", "gun very long words of all kinds"], 77, False))
    mean = np.mean([row / np.linalg.norm(row) for row in rows], axis=0)
    np.testing.assert_allclose(scorer.contests[0].own.embeddings[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_what_cannot_be_embedded_is_an_error(scorer_of: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        scorer_of(dataclasses.replace(GUNS, examples=(str(tmp_path / "none.png"),)))
    with pytest.raises(TextTooLongError, match="context length is 77"):
        scorer_of(Category(name="long", prompts=("word " * 90,), threshold=0.5))


# Several views --------------------------------------------------------------------------------------------------------


def test_one_view_is_what_it_is() -> None:
    found = judged(np.array([[1.5, -2.0]]), [WHOLE])
    assert found.evidence.tolist() == [1.5, -2.0] and found.view.tolist() == [0, 0]


def test_views_that_agree_say_what_each_says() -> None:
    found = judged(np.full((5, 1), 3.0), [WHOLE, TILE, TILE, CROP, TILE])
    assert found.evidence[0] == pytest.approx(3.0) and found.view[0] == 0


@pytest.mark.parametrize("tiles", [1, 4, 20])
def test_what_one_tile_shows_is_not_lost_and_costs_the_number_of_tiles(tiles: int) -> None:
    evidence = np.full((1 + tiles, 1), -9.0)
    evidence[tiles] = 9.0
    found = judged(evidence, [WHOLE, *[TILE] * tiles])
    assert found.evidence[0] == pytest.approx(9 - math.log(2 * tiles), abs=1e-3) and found.view[0] == tiles


def test_the_strictest_frame_counts_however_many_there_are() -> None:
    evidence = np.full((100, 2), -5.0)
    evidence[70] = 4.0, -5.0
    found = judged(evidence, [Seen(f"frame {i}: whole", "whole", i) for i in range(100)])
    assert found.evidence.tolist() == [4.0, -5.0] and found.view[0] == 70


def test_what_is_hidden_costs_nothing() -> None:
    views = [WHOLE, Seen("whole on black", "hidden", 0)]
    assert judged(np.array([[-3.0], [2.0]]), views).evidence[0] == 2.0


def test_noise_of_many_tiles_makes_no_false_alarms() -> None:
    """A whole that says nothing, and tiles that say nothing, by chance some of them a little."""
    generator = np.random.default_rng(0)
    # Evidence that is honest: normal, with mean -v/2 and variance v, which makes the mean likelihood ratio 1.
    found = [float(judged(generator.normal(-2, 2, (21, 1)), [WHOLE, *[TILE] * 20]).evidence[0]) for _ in range(2000)]
    alone = generator.normal(-2, 2, 2000)
    assert np.mean(np.array(found) > 3) <= np.mean(alone > 3)


# Calibration ----------------------------------------------------------------------------------------------------------


def trials(gap: float, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    is_match = np.arange(40) < 1
    rows = [generator.normal(size=40) + gap * is_match for _ in range(300)]
    return rows, np.tile(is_match, (300, 1))


def test_the_curve_is_the_likelihood_ratio_of_two_normal_distributions() -> None:
    """Of mean 0 and 2 and variance 1 it is exp(2 z - 2)."""
    curve = curve_of(*trials(2.0))
    assert curve.slope == pytest.approx(2.0, abs=0.3) and curve.intercept == pytest.approx(-2.0, abs=0.4)
    assert curve.mean == pytest.approx(2.0, abs=0.4) and curve.deviation == pytest.approx(2.0, abs=0.4)


def test_a_scale_and_an_offset_of_the_logits_make_no_difference() -> None:
    rows, is_match = trials(2.0)
    moved = curve_of([17.0 * row - 300.0 for row in rows], is_match)
    np.testing.assert_allclose(moved, curve_of(rows, is_match), rtol=1e-4)


def test_a_model_that_knows_nothing_gives_next_to_no_evidence() -> None:
    for gap in (0.0, -2.0):
        curve = curve_of(*trials(gap))
        assert abs(curve.evidence(np.array(2.0))) < 0.5
        assert curve.slope > 0  # the order stays
    constant = curve_of([np.ones(40)] * 2, np.tile(np.arange(40) < 1, (2, 1)))
    assert np.isfinite(constant).all()


def test_probabilities_are_for_a_collection_that_holds_so_much_of_it() -> None:
    curve = Curve(1.0, 0.0, 0.0, 1.0)
    assert curve.probability(0.0) == pytest.approx(SHARE)
    assert curve.probability(math.log((1 - SHARE) / SHARE)) == pytest.approx(0.5)
    assert curve.probability(-1e6) == 0.0 and curve.probability(1e6) == 1.0


# Thresholds -----------------------------------------------------------------------------------------------------------


def test_thresholds_and_where_they_come_from(scorer_of: Any) -> None:
    def of(measure: Any, value: float) -> Category:
        return Category(
            name=f"{measure}-{100 * value:.0f}", prompts=("gun",), target=Target(measure=measure, value=value)
        )

    categories = [of("precision", 0.9), of("recall", 0.5), of("recall", 0.9), of("recall", 0.99)]
    scorer = scorer_of(GUNS, *categories)
    assert scorer.threshold(GUNS) == (0.5, "stated")
    precise, *recalls = (scorer.threshold(category) for category in categories)
    assert precise == (0.9, "by calibration")
    assert recalls[0].value == pytest.approx(scorer.score(scorer.curve.mean))
    assert recalls[0].value > recalls[1].value > recalls[2].value > 0
    assert {found.origin for found in recalls} == {"by calibration"}
