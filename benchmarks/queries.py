"""What the language of queries and the probabilities of matches are worth, on pictures that pocket never saw.

    python benchmarks/queries.py [--data build/pocket/starter]

Without ``--data``: the embeddings of ``tests/golden/search`` (403 emoji in Noto's style, 216 pieces of clip art), for
which nothing is needed but this repository. With the starter set of ``recipes/pocket/build_starter.py``: all its 3,357
pictures, most of which pocket was trained on, so that there are more combinations of words; and pictures as queries.

A picture matches a word that its label, keywords or category have. Such lists are incomplete: a match that they do not
name counts as a mistake here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from clip.features import encode_images, encode_texts
from clip.inference.loading import Model, load_for_inference
from clip.search.query import Query, parse
from clip.search.scoring import Background, Curve, calibration_pairs, evidence, fit_curve, score

GOLDEN = Path(__file__).parents[1] / "tests/golden/search"
sys.path.insert(0, str(GOLDEN))
from make_pictures import on_white, words_of  # noqa: E402  # what was done to the pictures that are stored there

WORDS = 600
"""With matches, and as many without."""
PAIRS = 400
SEED = 0

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Thing = TypeVar("Thing")


class Pictures(NamedTuple):
    name: str
    embeddings: NDArray[np.float32]
    words: list[set[str]]

    def having(self, word: str) -> Bools:
        return np.array([word in words for words in self.words])

    def counts(self) -> dict[str, int]:
        return Counter(word for words in self.words for word in words)

    def every_word(self) -> set[str]:
        return set().union(*self.words)


class Words:
    """Embeddings of texts, each computed once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for batch in encode_texts(self._model, new):
            self._known.update(zip((new[i] for i in batch.positions), batch.embeddings, strict=True))
        return np.stack([self._known[text] for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the starter set")
    arguments = parser.parse_args()
    model, preprocess = load_for_inference("pocket", precision="fp32")
    words = Words(model)
    pairs = calibration_pairs()
    samples = np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, pairs.images)])
    base = Background.of(samples, words(pairs.texts), pairs.is_match)
    print(f"{base.curve} from {len(pairs.images)} pictures and {len(pairs.texts)} texts\n")
    raw = raw_curve(samples @ words(pairs.texts).T, pairs.is_match)

    sets = golden_pictures()
    if arguments.data is not None:
        records = [json.loads(line) for line in (arguments.data / "pairs.jsonl").open(encoding="utf-8")]
        files = (on_white(arguments.data / record["file"]) for record in records)
        embeddings = np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, files)])
        trained_on = [i for i, r in enumerate(records) if r["style"] != "noto" and r["split"] != "test_retrieval"]
        sets += [
            Pictures(name, embeddings[chosen], [words_of(records[i]) for i in chosen])
            for name, chosen in (
                ("emoji that pocket knows", [i for i in trained_on if records[i]["style"] != "clipart"]),
                ("clip art that pocket knows", [i for i in trained_on if records[i]["style"] == "clipart"]),
            )
        ]
    for pictures in sets:
        background = base.with_sample_of([pictures.embeddings])
        elsewhere = set[str]().union(*(other.every_word() for other in sets)) - pictures.every_word()
        print(f"# {pictures.name}: {len(pictures.embeddings)} pictures\n")
        probabilities(pictures, background, raw, words, sorted(elsewhere))
        conjunctions(pictures, background, words)
        exclusions(pictures, background, words)
    if arguments.data is not None:
        picture_queries(base, embeddings, records)


# Is it a match? -------------------------------------------------------------------------------------------------------


def probabilities(pictures: Pictures, background: Background, raw: Curve, words: Words, elsewhere: list[str]) -> None:
    generator = np.random.default_rng(SEED)
    count = len(pictures.embeddings)
    present = drawn([word for word, n in sorted(pictures.counts().items()) if n <= 40], WORDS, generator)
    absent = drawn(elsewhere, len(present), generator)
    queries = [parse(word) for word in (*present, *absent)]
    embeddings = words([*present, *absent])
    cosines = pictures.embeddings @ embeddings.T
    truth = np.stack([pictures.having(word) for word in (*present, *absent)], axis=1)
    is_present = np.arange(len(queries)) < len(present)
    found = [
        score(query, cosines[:, [i]], background.reference(query, embeddings[[i]]), count)
        for i, query in enumerate(queries)
    ]
    strength = np.hstack(
        [evidence(cosines[:, [i]], background.reference(query, embeddings[[i]])) for i, query in enumerate(queries)]
    )
    print(f"{len(present)} words that some have ({truth.sum() / len(present):.1f} each), {len(absent)} that none has")
    print("loss: nats for a query; error: of probabilities from 0.05; the rest of hits with at least 0.5")
    print(f"{'probability':28} loss, some / none   error   answered, some / none   precision")
    for name, p in (
        ("as it is", np.stack([scored.matches for scored in found], axis=1)),
        ("one match expected", logistic(strength - np.log(count))),
        ("no background: the cosine", logistic(raw.slope * cosines + raw.intercept - np.log(count))),
    ):
        print_probabilities(name, np.asarray(p, np.float64), truth, is_present)
    matches = np.stack([scored.matches for scored in found], axis=1)
    print(f"mean probability: share of matches (hits)   {reliability(matches, truth)}\n")


def print_probabilities(name: str, p: Floats, truth: Bools, is_present: Bools) -> None:
    p = p.clip(1e-9, 1 - 1e-9)
    loss = -np.where(truth, np.log(p), np.log1p(-p)).sum(axis=0)
    is_hit = p >= 0.5
    is_answered = is_hit.any(axis=0)
    print(
        f"{name:28} {loss[is_present].mean():10.2f} / {loss[~is_present].mean():4.2f}   {error(p, truth):5.3f}"
        f"   {is_answered[is_present].mean():14.0%} / {is_answered[~is_present].mean():4.0%}   "
        f"{truth[is_hit].mean() if is_hit.any() else float('nan'):9.0%}"
    )


EDGES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.01)


def bins(p: Floats, truth: Bools) -> Iterable[tuple[float, float, int]]:
    for low, high in itertools.pairwise(EDGES):
        inside = (p >= low) & (p < high)
        if inside.any():
            yield float(p[inside].mean()), float(truth[inside].mean()), int(inside.sum())


def error(p: Floats, truth: Bools) -> float:
    """Expected calibration error of probabilities that say anything."""
    found = list(bins(p, truth))
    return sum(abs(mean - share) * n for mean, share, n in found) / max(1, sum(n for _, _, n in found))


def reliability(p: Floats, truth: Bools) -> str:
    return "  ".join(f"{mean:.2f}: {share:.2f} ({n})" for mean, share, n in bins(p, truth))


def logistic(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def raw_curve(cosines: Floats, is_match: Bools) -> Curve:
    """Of cosines as they are: those of "pictures" whose embeddings are such that all texts have the same background."""
    mean, deviation = float(cosines.mean()), float(cosines.std())
    standard = ((cosines - mean) / deviation).reshape(-1, 1).astype(np.float32)
    curve = fit_curve(standard, np.ones((1, 1), np.float32), is_match.reshape(-1, 1))
    return Curve(curve.slope / deviation, curve.intercept - curve.slope * mean / deviation)


# Trees ----------------------------------------------------------------------------------------------------------------


class Ranking(NamedTuple):
    name: str
    scores: Callable[[str, str], Floats]


def conjunctions(pictures: Pictures, background: Background, words: Words) -> None:
    """Both of two words."""
    count = len(pictures.embeddings)
    found = known_words(pictures, words)

    def ours(first: str, second: str) -> Floats:
        return answers(parse(f"{first} AND {second}"), pictures, background, words).scores

    def standard(word: str) -> Floats:
        query = parse(word)
        cosines = pictures.embeddings @ words([word]).T
        return evidence(cosines, background.reference(query, words([word])))[:, 0]

    cases = [
        (first, second, both)
        for first, second in itertools.combinations(found, 2)
        if 2 <= (both := found[first] & found[second]).sum() <= min(found[first].sum(), found[second].sum()) - 2
    ]
    compare(
        "AND",
        drawn(cases, PAIRS, np.random.default_rng(SEED)),
        Ranking("mean of the embeddings", lambda a, b: pictures.embeddings @ words([a, b]).sum(axis=0)),
        Ranking("AND", ours),
        Ranking("the lesser evidence", lambda a, b: np.minimum(standard(a), standard(b))),
        Ranking("both words as one text", lambda a, b: pictures.embeddings @ words([f"{a} {b}"])[0]),
    )
    generator = np.random.default_rng(SEED)
    pairs = [(first, second) for first, second in itertools.combinations(sorted(pictures.counts()), 2)]
    pairs = drawn(pairs, 40 * PAIRS, generator)
    having = {word: pictures.having(word) for word in {word for pair in pairs for word in pair}}
    some = [(a, b) for a, b in pairs if (having[a] & having[b]).any() and (having[a] != having[b]).any()][:PAIRS]
    none = [(a, b) for a, b in pairs if not (having[a] & having[b]).any()][: len(some)]
    truth = np.stack([having[a] & having[b] for a, b in (*some, *none)], axis=1)
    matches, product, naive = [], [], []
    for a, b in (*some, *none):
        matches.append(answers(parse(f"{a} AND {b}"), pictures, background, words).matches)
        both = standard(a), standard(b)
        product.append(np.prod([logistic(each - np.log(count)) for each in both], axis=0))
        naive.append(logistic(both[0] + both[1] - np.log(count)))
    is_present = np.arange(len(some) + len(none)) < len(some)
    print(f"{'probability of both':28} loss, some / none   error   answered, some / none   precision")
    for name, p in (("as it is", matches), ("product of two", product), ("sum of the evidence", naive)):
        print_probabilities(name, np.stack(p, axis=1).astype(np.float64), truth, is_present)
    print()


def exclusions(pictures: Pictures, background: Background, words: Words) -> None:
    """One word without another, which at least a fifth of its pictures have."""
    found = known_words(pictures, words)
    cases = [
        (first, second, found[first] & ~found[second])
        for first, second in itertools.permutations(found, 2)
        if (found[first] & ~found[second]).sum() >= 3
        and (found[first] & found[second]).sum() >= max(2, 0.2 * found[first].sum())
    ]

    def minus(share: float) -> Callable[[str, str], Floats]:
        return lambda a, b: pictures.embeddings @ (words([a])[0] - share * words([b])[0])

    def ours(first: str, second: str) -> Floats:
        return answers(parse(f"{first} NOT {second}"), pictures, background, words).scores

    compare(
        "NOT",
        drawn(cases, PAIRS, np.random.default_rng(SEED)),
        Ranking("exclusion ignored", lambda a, b: pictures.embeddings @ words([a])[0]),
        Ranking("NOT", ours),
        Ranking("difference of embeddings", minus(1.0)),
        Ranking("a quarter of it subtracted", minus(0.25)),
        Ranking("'A without B' as a text", lambda a, b: pictures.embeddings @ words([f"{a} without {b}"])[0]),
    )
    print()


def answers(query: Query, pictures: Pictures, background: Background, words: Words) -> Any:
    embeddings = query.arranged(words(query.texts), np.empty((0, pictures.embeddings.shape[1]), np.float32))
    reference = background.reference(query, embeddings)
    return score(query, pictures.embeddings @ embeddings.T, reference, len(pictures.embeddings))


def known_words(pictures: Pictures, words: Words) -> dict[str, Bools]:
    """Words that the model has an idea of: that find their pictures with an average precision of at least 0.2."""
    found = {word: pictures.having(word) for word, n in sorted(pictures.counts().items()) if 4 <= n <= 120}
    cosines = pictures.embeddings @ words(list(found)).T
    return {
        word: truth
        for (word, truth), column in zip(found.items(), cosines.T, strict=True)
        if average_precision(column, truth) >= 0.2
    }


def compare(title: str, cases: list[tuple[str, str, Bools]], *rankings: Ranking) -> None:
    """The first is what the others are compared with."""
    print(f"{title + f', {len(cases)} pairs':28} average precision   difference   precision@10   difference")
    if not cases:
        return
    results = np.array(
        [
            [
                (average_precision(scores, truth), precision_at_10(scores, truth))
                for scores in (ranking.scores(first, second) for ranking in rankings)
            ]
            for first, second, truth in cases
        ]
    )  # (cases, rankings, 2)
    for i, ranking in enumerate(rankings):
        mean, difference = results[:, i].mean(axis=0), results[:, i] - results[:, 0]
        by, of = difference.mean(axis=0), 2 * difference.std(axis=0) / np.sqrt(len(cases))
        columns = [f"{mean[j]:8.3f}   {by[j]:+.3f} ± {of[j]:.3f}" if i else f"{mean[j]:8.3f}{'':17}" for j in (0, 1)]
        print(f"{ranking.name:28} {columns[0]}   {columns[1]}")


def average_precision(scores: Floats, truth: Bools) -> float:
    ranked = truth[np.argsort(-scores, kind="stable")]
    places = np.flatnonzero(ranked) + 1
    return float((np.arange(1, len(places) + 1) / places).mean())


def precision_at_10(scores: Floats, truth: Bools) -> float:
    return float(truth[np.argsort(-scores, kind="stable")[:10]].mean())


# Pictures as queries --------------------------------------------------------------------------------------------------


def picture_queries(base: Background, embeddings: NDArray[np.float32], records: list[dict[str, Any]]) -> None:
    """An emoji of another style finds Noto's of the same concept, with probabilities by the curve of texts."""
    concepts = np.array([record["concept"] or "" for record in records])
    styles = np.array([record["style"] for record in records])
    noto = styles == "noto"
    pictures = embeddings[noto]
    background = base.with_sample_of([pictures])
    print("pictures as queries          mean probability: share of matches (hits)")
    for style in ("openmoji", "twemoji", "fluent_flat"):
        chosen = np.flatnonzero((styles == style) & np.isin(concepts, concepts[noto]))
        matches = []
        for i in chosen:
            query = parse("", images=["picture"])
            reference = background.reference(query, embeddings[[i]])
            matches.append(score(query, pictures @ embeddings[[i]].T, reference, len(pictures)).matches)
        p, truth = np.stack(matches, axis=1), concepts[noto][:, None] == concepts[chosen]
        print(f"{style:12} error {error(p, truth):.3f}   {reliability(p, truth)}")


# Data -----------------------------------------------------------------------------------------------------------------


def drawn(things: Sequence[Thing], count: int, generator: np.random.Generator) -> list[Thing]:
    return [things[i] for i in generator.permutation(len(things))[:count]]


def golden_pictures() -> list[Pictures]:
    with np.load(GOLDEN / "pictures.npz") as stored:
        embeddings, words = (
            stored["embeddings"].astype(np.float32),
            [set(w.split("|")) for w in stored["words"].tolist()],
        )
        styles = stored["styles"]
    return [
        Pictures(name, embeddings[styles == style], list(itertools.compress(words, styles == style)))
        for name, style in (("Noto Emoji", "noto"), ("clip art", "clipart"))
    ]


if __name__ == "__main__":
    main()
