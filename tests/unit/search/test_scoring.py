"""Scores and probabilities: what must hold for any model, and what they are worth on real pictures."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from clip.errors import DataError, ShapeError
from clip.features import encode_images, encode_texts
from clip.inference.loading import fingerprint_of, load_for_inference
from clip.search.query import parse
from clip.search.scoring import (
    SAMPLE_SIZE,
    Background,
    Curve,
    Reference,
    Scored,
    calibration_pairs,
    evidence,
    fit_curve,
    probes,
    score,
)

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Embeddings = NDArray[np.float32]

GOLDEN = Path(__file__).parents[2] / "golden/search/pictures.npz"
CURVE = Curve(1.3, -0.9)


def unit(rows: Floats) -> Embeddings:
    scaled: Embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def drawn(shape: tuple[int, int], seed: int = 0) -> Embeddings:
    return unit(np.random.default_rng(seed).normal(size=shape))


def standard_reference(terms: int, size: int = 4000) -> Reference:
    """Independent cosines of mean 0 and deviation 1, for which evidence is easily worked out; none of the index."""
    cosines = np.random.default_rng(0).normal(size=(size, terms))
    return Reference(((cosines - cosines.mean(axis=0)) / cosines.std(axis=0)).astype(np.float32), CURVE, size)


def answered(text: str, cosines: Sequence[Sequence[float]], count: int = 1000) -> Scored:
    query = parse(text)
    return score(query, np.array(cosines, np.float32), standard_reference(len(query.terms)), count)


def background(seed: int = 0) -> Background:
    images = drawn((36, 8), seed)
    return Background.of(images, images, np.eye(36, dtype=bool))


class TestOneTerm:
    def test_is_ordered_by_cosine(self) -> None:
        cosines = np.random.default_rng(1).normal(size=100).tolist()
        scored = answered("dog", [[cosine] for cosine in cosines])
        for values in scored:
            assert np.argsort(values).tolist() == np.argsort(cosines).tolist()

    def test_has_the_probability_of_its_evidence_and_one_match_among_all(self) -> None:
        z = 6.0
        (match,) = answered("dog", [[z]], count=1000).matches
        odds = np.exp(CURVE.slope * z + CURVE.intercept) / 1000
        assert match == pytest.approx(odds / (1 + odds), abs=2e-3)

    def test_is_likelier_where_the_index_has_many(self) -> None:
        """Of two pictures with the same cosine to "beach", the one in an index where each tenth shows a beach."""
        reference = standard_reference(1)
        query, cosines = parse("beach"), np.array([[5.0]], np.float32)

        def match(own: Sequence[float]) -> float:
            sample = np.array(own, np.float32)[:, None]
            pictures = np.concatenate([reference.cosines, sample])
            return float(score(query, cosines, reference._replace(cosines=pictures), 10_000).matches[0])

        rare, common = match([0.0] * 1000), match([0.0] * 900 + [5.0] * 100)
        assert rare < 0.1 < 0.8 < common
        assert rare == pytest.approx(match([]), abs=0.03)

    def test_is_less_likely_among_more(self) -> None:
        matches = [answered("dog", [[5.0]], count=count).matches[0] for count in (1, 10, 1000, 10**6, 10**10)]
        assert matches == sorted(matches, reverse=True)
        assert 1 > matches[0] > 0.9 > 0.001 > matches[-1] > 0

    def test_does_not_mind_what_a_cosine_usually_is(self) -> None:
        query, images = parse("dog"), np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
        reference = standard_reference(1)
        moved = reference._replace(cosines=0.2 + 0.05 * reference.cosines)
        expected = score(query, images, reference, 100)
        for found, as_before in zip(score(query, 0.2 + 0.05 * images, moved, 100), expected, strict=True):
            np.testing.assert_allclose(found, as_before, rtol=1e-3, atol=1e-4)  # float32 of the moved cosines

    def test_weight_changes_no_probability(self) -> None:
        cosines = [[1.0], [4.0]]
        assert answered("dog^3", cosines).matches.tolist() == answered("dog", cosines).matches.tolist()

    def test_of_no_picture(self) -> None:
        scored = score(parse("dog AND cat NOT bird"), np.empty((0, 3), np.float32), standard_reference(3), 0)
        assert scored.scores.shape == scored.matches.shape == (0,)


class TestTrees:
    def test_and_wants_both(self) -> None:
        scores, matches = answered("dog AND cat", [[4, 4], [6, 0], [0, 6], [0, 0]])
        assert np.argmax(scores) == np.argmax(matches) == 0
        assert matches[0] > 0.5 > 0.3 > matches[1:].max()

    def test_or_wants_one(self) -> None:
        scores, matches = answered("dog OR cat", [[4, 4], [7, 0], [0, 7], [1, 1]])
        assert np.argmin(scores) == np.argmin(matches) == 3
        assert matches[1] == pytest.approx(matches[2], rel=1e-2)
        assert matches[1] > 0.5 > matches[3]

    def test_not_wants_none(self) -> None:
        scores, matches = answered("dog NOT cat", [[7, 7], [7, 0], [0, 0]] + [[0, 0]] * 20)
        assert np.argmax(scores) == np.argmax(matches) == 1
        assert matches[0] < 0.1 < 0.6 < matches[1]

    def test_an_exclusion_makes_nothing_likelier(self) -> None:
        cosines = np.random.default_rng(0).normal(2, 2, size=(200, 2)).astype(np.float32)
        reference = standard_reference(2)
        plain = score(parse("dog"), cosines[:, :1], reference._replace(cosines=reference.cosines[:, :1]), 500)
        excluded = score(parse("dog NOT cat"), cosines, reference, 500)
        assert (excluded.matches <= plain.matches + 1e-7).all()
        assert (excluded.scores <= plain.scores + 1e-6).all()

    def test_an_exclusion_leaves_out_what_the_wanted_implies(self) -> None:
        """All beaches look a bit like holidays; only those that do so more than other beaches are excluded."""
        beaches = [[5.0, 2.0]] * 20 + [[5.0, 7.0]]
        others = [[-1.0, 2.0]] * 50
        _, matches = answered("beach NOT holiday", beaches + others, count=100)
        _, without = answered("beach NOT holiday", [[5.0, 0.0]] * 20 + others, count=100)
        assert matches[0] == pytest.approx(without[0], abs=0.02)
        assert matches[20] < 0.1 * matches[0]

    def test_weights_change_the_order(self) -> None:
        cosines = [[4.0, 2.0], [2.0, 3.0]]
        for text, best in (("dog AND cat", 0), ("dog AND cat^5", 1), ("dog^0.2 AND cat", 1)):
            assert np.argmax(answered(text, cosines).scores) == best, text
        assert answered("dog AND cat^5", cosines).matches.tolist() == answered("dog AND cat", cosines).matches.tolist()
        half = [[6.0, 3.0], [4.0, 0.0], *[[0.0, 0.0]] * 20]
        assert np.argmax(answered("dog NOT cat^0.01", half).scores) == 0
        assert np.argmax(answered("dog NOT cat^9", half).scores) == 1

    def test_saying_the_same_twice_is_no_more_evidence(self) -> None:
        one = standard_reference(1)
        twice = one._replace(cosines=np.repeat(one.cosines, 2, axis=1))
        cosines = np.array([[3], [5], [7]], np.float32)
        single = score(parse("dog"), cosines, one, 1000).matches
        double = score(parse("dog AND dog"), np.repeat(cosines, 2, axis=1), twice, 1000).matches
        independent = score(parse("dog AND cat"), np.repeat(cosines, 2, axis=1), standard_reference(2), 1000).matches
        assert (np.abs(double - single) < 0.35).all()
        assert (independent[1:] > 0.9).all()
        assert independent[1] > double[1] + 0.4

    @pytest.mark.parametrize("text", ["a AND b AND c", "a OR b OR c", "a AND b NOT c", "(a NOT b) OR c^9"])
    def test_is_finite_whatever_the_cosines(self, text: str) -> None:
        wild = [[1e6, -1e6, 1e6], [-1e6, 1e6, 1e6], [0.3, 0.3, 0.3], [1e6, 1e6, 1e6]]
        all_the_same = Reference(np.full((36, 3), 0.3, np.float32), CURVE)
        for reference in (standard_reference(3), all_the_same):
            scores, matches = score(parse(text), np.array(wild, np.float32), reference, 4)
            assert np.isfinite(scores).all()
            assert ((matches >= 0) & (matches <= 1)).all()

    def test_wants_a_column_for_each_term(self) -> None:
        with pytest.raises(ShapeError, match="the query has 2 terms"):
            answered("dog AND cat", [[1.0]])
        with pytest.raises(ShapeError, match="the query has 1 terms"):
            score(parse("dog"), np.zeros((3, 1), np.float32), standard_reference(2), 3)


class TestProbes:
    def test_are_what_is_wanted_and_what_belongs_together(self) -> None:
        axes = np.eye(4, dtype=np.float32)
        assert probes(parse("a"), axes[:1]).tolist() == axes[:1].tolist()
        assert probes(parse("a NOT b"), axes[:2]).tolist() == axes[:1].tolist()
        together = probes(parse("a AND b NOT c"), axes[:3])
        np.testing.assert_allclose(together, [[1, 0, 0, 0], [0, 1, 0, 0], [0.5**0.5, 0.5**0.5, 0, 0]], atol=1e-6)
        assert probes(parse("a OR b"), axes[:2]).tolist() == axes[:2].tolist()

    def test_weigh(self) -> None:
        third = probes(parse("a^3 AND b"), np.eye(2, dtype=np.float32))[2]
        np.testing.assert_allclose(third, np.array([3, 1]) / 10**0.5, atol=1e-6)

    def test_take_each_way_that_a_choice_can_go(self) -> None:
        found = probes(parse("(a OR b) AND c NOT d"), np.eye(4, dtype=np.float32))
        expected = unit(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0]]))
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_are_not_many_however_many_choices_there_are(self) -> None:
        text = " AND ".join(["(a OR b OR c)"] * 20)
        assert len(probes(parse(text), drawn((60, 8)))) < 130

    def test_have_unit_norm_and_the_width_of_the_model(self) -> None:
        found = probes(parse("(a OR b) AND (c OR d NOT e)"), drawn((5, 8)))
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        opposite = probes(parse("a AND b"), np.array([[1, 0], [-1, 0]], np.float32))
        assert np.isfinite(opposite).all()


class TestBackground:
    def test_survives_as_bytes(self) -> None:
        made = background().with_sample_of([drawn((20, 8), 1)])
        read = Background.from_bytes(made.to_bytes(), "index")
        assert read.curve == made.curve
        assert read.sample.tolist() == made.sample.tolist()
        assert read.anchors.tolist() == made.anchors.tolist()

    def test_is_small(self) -> None:
        images = drawn((36, 512))
        whole = Background.of(images, images, np.eye(36, dtype=bool)).with_sample_of([drawn((5000, 512))])
        assert len(whole.sample) == SAMPLE_SIZE
        assert len(whole.to_bytes()) < 1.1 * 2**20

    @pytest.mark.parametrize("data", [b"", b"no arrays", b"PK\x03\x04", background().to_bytes()[:-30]])
    def test_refuses_what_is_none(self, data: bytes) -> None:
        with pytest.raises(DataError, match="index: its background cannot be read"):
            Background.from_bytes(data, "index")

    def test_refuses_another_version_and_other_arrays(self) -> None:
        def document(**changed: Any) -> bytes:
            written, file = io.BytesIO(background().to_bytes()), io.BytesIO()
            for name in ("version", "curve", "anchors", "sample"):
                stored = np.load(written)
                np.save(file, changed.get(name, stored))
            return file.getvalue()

        assert Background.from_bytes(document(), "index").curve == background().curve
        with pytest.raises(DataError, match="version 99; this everyclip reads 1"):
            Background.from_bytes(document(version=np.int64(99)), "index")
        for changed in (
            {"curve": np.zeros(3)},
            {"curve": np.array([np.nan, 0.0])},
            {"curve": np.array(["a", "b"])},
            {"anchors": np.zeros(8, np.float16)},
            {"sample": np.zeros((3, 7), np.float16)},
            {"sample": np.full((3, 8), np.nan, np.float16)},
            {"sample": np.array([{"pickled": 1}])},
        ):
            with pytest.raises(DataError, match="cannot be read"):
                Background.from_bytes(document(**changed), "index")

    def test_draws_each_picture_with_the_same_chance(self) -> None:
        rows = np.zeros((2000, 8), np.float32)
        rows[:, 0] = np.arange(2000)  # float16 has each of them
        whole = background().with_sample_of(np.array_split(rows, 37))
        assert len(np.unique(whole.sample[:, 0])) == SAMPLE_SIZE
        assert abs(float(whole.sample[:, 0].astype(np.float64).mean()) - 1000) < 4 * 2000 / (12 * SAMPLE_SIZE) ** 0.5
        assert (whole.with_sample_of(np.array_split(rows, 37)).sample == whole.sample).all()
        assert len(background().with_sample_of([rows[:5]]).sample) == 5
        assert len(background().with_sample_of([]).sample) == 0


class TestCurve:
    def test_is_that_of_the_data(self) -> None:
        """Matches at z = 2, others at 0, both of deviation 1: the evidence is 2 z - 2."""
        generator = np.random.default_rng(0)
        is_match = np.eye(300, dtype=bool)
        cosines = np.where(is_match, 2.0, 0.0) + generator.normal(size=(300, 300))
        curve = fit_curve(cosines.astype(np.float32), np.eye(300, dtype=np.float32), is_match)
        assert curve.slope == pytest.approx(2, abs=0.15)
        assert curve.intercept == pytest.approx(-2, abs=0.3)

    def test_stays_finite_if_all_matches_are_told_apart(self) -> None:
        curve = fit_curve(np.eye(36, dtype=np.float32), np.eye(36, dtype=np.float32), np.eye(36, dtype=bool))
        assert 0.5 < curve.slope < 5

    def test_gives_no_evidence_for_a_model_that_knows_nothing(self) -> None:
        for texts in (-drawn((36, 8)), np.ones((36, 8), np.float32) / 8**0.5):
            curve = fit_curve(drawn((36, 8)), texts, np.eye(36, dtype=bool))
            assert 0 < curve.slope <= 0.2
            assert abs(curve.intercept) < 0.5


# Real pictures --------------------------------------------------------------------------------------------------------


class Real(NamedTuple):
    """Pictures that pocket was not trained on, the words that are true of them, and words of other pictures."""

    embeddings: Embeddings
    words: list[set[str]]
    background: Background
    texts: dict[str, Embeddings]
    absent: list[str]

    def having(self, word: str) -> Bools:
        return np.array([word in words for words in self.words])

    def answers(self, text: str) -> Scored:
        query = parse(text)
        embeddings = np.stack([self.texts[word] for word in query.texts])
        reference = self.background.reference(query, embeddings)
        return score(query, self.embeddings @ embeddings.T, reference, len(self.embeddings))


@pytest.fixture(scope="module")
def real() -> list[Real]:
    """Emoji and clip art, each an index of its own."""
    with np.load(GOLDEN) as stored:
        model, embeddings, styles = str(stored["model"]), stored["embeddings"].astype(np.float32), stored["styles"]
        words = [set(line.split("|")) for line in stored["words"].tolist()]
    assert model == fingerprint_of("pocket"), "pocket has changed; run tests/golden/search/make_pictures.py"
    pocket, preprocess = load_for_inference("pocket", device="cpu", precision="fp32")
    pairs = calibration_pairs()
    images = np.concatenate([batch.embeddings for batch in encode_images(pocket, preprocess, pairs.images)])
    vocabulary = sorted(set().union(*words))
    texts = np.concatenate([batch.embeddings for batch in encode_texts(pocket, [*pairs.texts, *vocabulary])])
    base = Background.of(images, texts[: len(pairs.texts)], pairs.is_match)
    by_word = dict(zip(vocabulary, texts[len(pairs.texts) :], strict=True))
    indexes = []
    for style in ("noto", "clipart"):
        chosen = styles == style
        own = list(itertools.compress(words, chosen))
        absent = sorted(set(vocabulary) - set().union(*own))
        drawn_from = base.with_sample_of([embeddings[chosen]])
        indexes.append(Real(embeddings[chosen], own, drawn_from, by_word, absent))
    return indexes


def known_words(index: Real, least: int, most: int) -> list[str]:
    counts = Counter(word for words in index.words for word in words)
    return [word for word, n in sorted(counts.items()) if least <= n <= most]


def average_precision(scores: Floats, truth: Bools) -> float:
    ranked = truth[np.argsort(-scores, kind="stable")]
    places = np.flatnonzero(ranked) + 1
    return float((np.arange(1, len(places) + 1) / places).mean())


def precision_at_10(scores: Floats, truth: Bools) -> float:
    return float(truth[np.argsort(-scores, kind="stable")[:10]].mean())


def calibration_error(p: Floats, truth: Bools) -> float:
    edges = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.01)
    inside = [(p >= low) & (p < high) for low, high in itertools.pairwise(edges)]
    wrong = sum(abs(float(p[each].sum()) - int(truth[each].sum())) for each in inside)
    return wrong / sum(int(each.sum()) for each in inside)


def test_probabilities_of_matches_are_to_be_believed(real: list[Real]) -> None:
    """Fitted on 36 other pictures, judged on words of which half are true of some picture and half of none."""
    matches, truth = [], []
    for index in real:
        present = known_words(index, 1, 40)[::3]
        for word in (*present, *index.absent[: len(present)]):
            matches.append(index.answers(word).matches)
            truth.append(index.having(word))
    p, is_match = np.concatenate(matches), np.concatenate(truth)
    assert calibration_error(p, is_match) < 0.04
    odds = p / (1 - p)
    for wrong in (3 * odds, odds / 3):  # the measure sees them
        assert calibration_error(wrong / (1 + wrong), is_match) > 0.05
    assert log_loss(p, is_match) < 0.9 * log_loss(np.full_like(p, is_match.mean()), is_match)


def log_loss(p: Floats, truth: Bools) -> float:
    loss = -np.where(truth, np.log(p), np.log1p(-p))
    return float(loss.mean())


def test_what_no_picture_shows_has_an_empty_answer(real: list[Real]) -> None:
    answered = [(index.answers(word).matches >= 0.5).any() for index in real for word in index.absent[::3]]
    assert len(answered) > 300
    assert np.mean(answered) < 0.03


def test_most_of_what_is_answered_is_right(real: list[Real]) -> None:
    hits = [
        index.having(word)[index.answers(word).matches >= 0.5]
        for index in real
        for word in known_words(index, 1, 40)[::2]
    ]
    found = np.concatenate(hits)
    assert len(found) > 40
    assert found.mean() > 0.7


def test_both_of_two_are_not_taken_for_two_independent_things(real: list[Real]) -> None:
    """Their probability beats the product of the two, and the sum of their evidence as if it were not the same."""
    emoji, _ = real
    truth = {word: emoji.having(word) for word in known_words(emoji, 3, 40)}
    alone = {word: emoji.answers(word) for word in truth}
    pairs = list(itertools.combinations(truth, 2))
    pairs = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]
    some = [(a, b) for a, b in pairs if (truth[a] & truth[b]).any()][:150]
    none = [(a, b) for a, b in pairs if not (truth[a] & truth[b]).any()][:150]
    losses = []
    for a, b in (*some, *none):
        product = alone[a].matches * alone[b].matches
        added = 1 / (1 + np.exp(np.log(len(product)) - alone[a].scores - alone[b].scores))
        ours = emoji.answers(f"{a} AND {b}").matches
        losses.append([log_loss(p, truth[a] & truth[b]) for p in (ours, product, added)])
    loss, of_product, of_sum = np.mean(losses, axis=0)
    assert loss < 0.95 * of_sum
    assert loss < 0.8 * of_product


def test_an_exclusion_is_better_than_a_subtraction_and_than_none(real: list[Real]) -> None:
    """Words A and B that the model knows; at least a fifth of the pictures with A also have B. Wanted is A alone."""
    found = []
    for index in real:
        truth = {word: index.having(word) for word in known_words(index, 4, 120)}
        cosines = {word: index.embeddings @ index.texts[word] for word in truth}
        known = [word for word in truth if average_precision(cosines[word], truth[word]) >= 0.2]
        for a, b in itertools.permutations(known, 2):
            wanted, both = truth[a] & ~truth[b], truth[a] & truth[b]
            if wanted.sum() >= 3 and both.sum() >= max(2, 0.2 * truth[a].sum()):
                rankings = index.answers(f"{a} NOT {b}").scores, cosines[a] - cosines[b], cosines[a]
                found.append([(average_precision(each, wanted), precision_at_10(each, wanted)) for each in rankings])
    assert len(found) > 100
    ours, subtraction, ignored = np.mean(found, axis=0)
    assert (ours > ignored).all()
    assert (ours > subtraction + 0.05).all()


def test_a_picture_as_a_query_needs_no_curve_of_its_own(real: list[Real]) -> None:
    """Pictures are much nearer to pictures than texts are; compared with the background, they mean the same."""
    pocket, preprocess = load_for_inference("pocket", device="cpu", precision="fp32")
    pairs = calibration_pairs()
    samples = np.concatenate([batch.embeddings for batch in encode_images(pocket, preprocess, pairs.images)])
    emoji, _ = real
    (place,) = (i for i, text in enumerate(pairs.texts) if text == "an emoji of the face of a fox")
    cosines = emoji.embeddings @ samples[place]
    query = parse("+fox.png")
    reference = emoji.background.reference(query, samples[[place]])
    matches = score(query, cosines[:, None], reference, len(cosines)).matches
    is_fox = emoji.having("fox")
    assert matches[is_fox].max() > 0.5
    assert (matches[~is_fox] < 0.5).all()
    strength = evidence(cosines[:, None], reference)
    assert strength[is_fox].max() > 6 > strength[~is_fox].mean()
