"""How well a policy finds what it names, with pocket, on pictures with known labels: the tables of
docs/moderation-evaluation.md.

    python recipes/moderation/evaluate.py --data build/pocket/moderation

Run after ``pictures.py``. Beside the moderator stands a baseline without contrast: a picture's score for a category is
its highest cosine with one of the category's prompts (same model, prompts and templates; no counter-prompts, no
background, the whole picture alone). Thresholds of both are chosen by one rule on ``icons.csv``: the lowest that at
most one negative in a hundred reaches. The tests have no part in them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip.features import encode_images, encode_texts
from clip.inference.loading import Model
from clip.intervals import wilson
from clip.moderation.moderator import Moderator
from clip.moderation.neutral import NEUTRAL
from clip.moderation.policy import Policy
from clip.moderation.policy_file import read_policy
from clip.moderation.views import Views
from clip.preprocess import Preprocess
from clip.prompts import DEFAULT_TEMPLATES, fill

FALSE_POSITIVES = 0.01
FEWEST_NAMES = 5  # of positives, for an interval of the average precision
RESAMPLES = 1000

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A set of pictures. K categories in the policy's order."""

    paths: list[str]
    names: NDArray[np.str_]
    """(N,) pictures of one name show the same thing and count as one when intervals are drawn."""
    belongs: NDArray[np.bool_]
    """(N, K)"""
    hard: NDArray[np.bool_]
    """(N, K) negatives that resemble the category."""


def read_known(table: Path, policy: Policy) -> Known:
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))

    def flags(column: str) -> NDArray[np.bool_]:
        return np.array([[c.name in row[column].split(";") for c in policy.categories] for row in rows])

    paths = [str(table.parent / row["path"]) for row in rows]
    return Known(paths, np.array([row["name"] for row in rows]), flags("categories"), flags("hard"))


def moderator_scores(moderator: Moderator, known: Known) -> Floats:
    """(N, K), as the verdicts have them."""
    found = []
    for verdict in moderator.moderate(known.paths):
        scores = {finding.category: finding.score for finding in verdict.findings}
        found.append([scores[category.name] for category in moderator.policy.categories])
    return np.array(found)


@dataclasses.dataclass(frozen=True, eq=False)
class Baseline:
    """The nearest prompt."""

    policy: Policy
    model: Model
    preprocess: Preprocess

    def texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        templates = self.policy.templates or DEFAULT_TEMPLATES
        filled = [fill(template, prompt) for prompt in prompts for template in templates]
        rows = np.concatenate([part.embeddings for part in encode_texts(self.model, filled)])
        means = rows.reshape(len(prompts), len(templates), -1).mean(axis=1)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def scores(self, known: Known) -> tuple[Floats, NDArray[np.bool_]]:
        """(N, K) highest cosines, and whether the nearest of all prompts, everyday things too, is the category's."""
        images = np.concatenate([part.embeddings for part in encode_images(self.model, self.preprocess, known.paths)])
        own = [images @ self.texts(category.prompts).T for category in self.policy.categories]
        scores = np.stack([cosines.max(axis=1) for cosines in own], axis=1).astype(np.float64)
        background = (images @ self.texts([*NEUTRAL, *self.policy.background]).T).max(axis=1, keepdims=True)
        return scores, (scores == scores.max(axis=1, keepdims=True)) & (scores > background)


def lowest_threshold(scores: Floats, belongs: NDArray[np.bool_]) -> float:
    """The lowest above which at most FALSE_POSITIVES of the negatives are."""
    negatives = np.sort(scores[~belongs])[::-1]
    return float(np.nextafter(negatives[int(FALSE_POSITIVES * len(negatives))], np.inf))


def average_precision(scores: Floats, belongs: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """Mean over the positives of the precision among all that score at least as high. nan without positives."""
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ordered, hits, each = scores[order], belongs[order] * weights[order], weights[order]
    last = np.searchsorted(-ordered, -ordered, side="right") - 1  # ties stand or fall together
    with np.errstate(invalid="ignore"):
        precision = np.nan_to_num(hits.cumsum() / each.cumsum())[last]
    return float((precision * hits).sum() / hits.sum()) if hits.sum() else float("nan")


def interval(scores: Floats, belongs: NDArray[np.bool_], names: NDArray[np.str_]) -> tuple[float, float] | None:
    """At 95 %, by drawing names anew; None if too few of them are positive to say."""
    kinds, place = np.unique(names, return_inverse=True)
    if len(np.unique(names[belongs])) < FEWEST_NAMES:
        return None
    rng = np.random.default_rng(0)
    drawn = [
        average_precision(
            scores, belongs, np.bincount(rng.integers(len(kinds), size=len(kinds)), minlength=len(kinds))[place]
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def difference(ours: Floats, theirs: Floats, known: Known) -> str:
    """Of the means over the categories of two average precisions, on the same pictures, drawn anew together by name."""
    kinds, place = np.unique(known.names, return_inverse=True)
    has = np.flatnonzero(known.belongs.any(axis=0))
    rng = np.random.default_rng(0)

    def mean(weights: Floats) -> float:
        with np.errstate(invalid="ignore"):
            each = [
                average_precision(ours[:, k], known.belongs[:, k], weights)
                - average_precision(theirs[:, k], known.belongs[:, k], weights)
                for k in has
            ]
        return float(np.nanmean(each))  # a category of which no picture was drawn is passed over

    drawn = [
        mean(np.bincount(rng.integers(len(kinds), size=len(kinds)), minlength=len(kinds))[place].astype(np.float64))
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{mean(np.ones(len(place))):+.2f} ({low:+.2f} to {high:+.2f})"


def share(part: int, of: int) -> str:
    if not of:
        return "–"
    low, high = wilson(part / of, of)
    return f"{part / of:.2f} ({low:.2f} to {high:.2f})"


def ap_text(scores: Floats, belongs: NDArray[np.bool_], names: NDArray[np.str_]) -> str:
    found = interval(scores, belongs, names)
    value = average_precision(scores, belongs)
    return f"{value:.2f}" + (f" ({found[0]:.2f} to {found[1]:.2f})" if found else " (too few)")


def row(title: str, found: NDArray[np.bool_], belongs: NDArray[np.bool_], hard: NDArray[np.bool_], ap: str) -> str:
    hits = int((found & belongs).sum())
    cells = [title, f"{int(belongs.sum())}", ap, share(hits, int(found.sum())), share(hits, int(belongs.sum()))]
    return "| " + " | ".join([*cells, f"{int((found & hard).sum())} of {int(hard.sum())}"]) + " |"


def table(known: Known, policy: Policy, ways: dict[str, tuple[Floats, NDArray[np.bool_]]]) -> None:
    """ways: by title, scores (N, K) and decisions (N, K)."""
    head = ["category", "how", "pictures", "average precision", "precision", "recall", "hard negatives found"]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for k, category in enumerate(policy.categories):
        for i, (title, (scores, found)) in enumerate(ways.items()):
            belongs, hard = known.belongs[:, k], known.hard[:, k]
            ap = ap_text(scores[:, k], belongs, known.names) if belongs.any() and scores.size else "–"
            print(row(f"{category.name if not i else ''} | {title}", found[:, k], belongs, hard, ap))
    for title, (scores, found) in ways.items():
        has = known.belongs.any(axis=0)
        mean = np.mean([average_precision(scores[:, k], known.belongs[:, k]) for k in np.flatnonzero(has)])
        print(row(f"all | {title}", found, known.belongs, known.hard, f"{mean:.2f} (mean)"))
    print(flush=True)


def mistakes(known: Known, policy: Policy, scores: Floats, found: NDArray[np.bool_]) -> None:
    for k, category in enumerate(policy.categories):
        order = np.argsort(-scores[:, k])
        wrong = [f"{known.names[i]} {scores[i, k]:.2f}" for i in order if found[i, k] and not known.belongs[i, k]]
        missed = [f"{known.names[i]} {scores[i, k]:.2f}" for i in order if known.belongs[i, k] and not found[i, k]]
        passed = [str(known.names[i]) for i in order if known.hard[i, k] and not found[i, k]]
        print(f"- **{category.name}**: found wrongly ({len(wrong)}): {', '.join(wrong[:12]) or 'none'}.")
        print(
            f"  Missed: {', '.join(missed) or 'none'}. Hard negatives passed ({len(passed)}): {', '.join(passed[:12])}."
        )
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/pocket/moderation"))
    parser.add_argument("--policy", default="restricted-goods")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--views", default="standard", choices=("fast", "standard", "thorough"))
    parser.add_argument("--save", type=Path, help="scores of all pictures as .npz, to look into")
    arguments = parser.parse_args()
    policy = read_policy(arguments.policy)
    moderator = Moderator.open(policy, model=arguments.model, precision="fp32", views=Views.named(arguments.views))
    baseline = Baseline(policy, moderator.model, moderator.preprocess)
    sets = {name: read_known(arguments.data / f"{name}.csv", policy) for name in ("icons", "noto", "clipart")}
    ours = {name: moderator_scores(moderator, known) for name, known in sets.items()}
    theirs = {name: baseline.scores(known) for name, known in sets.items()}
    if arguments.save:
        arrays = {
            f"{name}_{what}": a for name in sets for what, a in (("ours", ours[name]), ("theirs", theirs[name][0]))
        }
        np.savez(arguments.save, **arrays)
    stated = np.array([moderator.threshold(category).value for category in policy.categories])
    categories = range(len(policy.categories))
    icons = sets["icons"]
    chosen = np.array([lowest_threshold(ours["icons"][:, k], icons.belongs[:, k]) for k in categories])
    chosen_theirs = np.array([lowest_threshold(theirs["icons"][0][:, k], icons.belongs[:, k]) for k in categories])
    print(f"{arguments.model}, policy {policy.name} ({policy.fingerprint[:12]}), views {arguments.views}\n")
    for name in ("noto", "clipart", "icons"):
        known, (cosines, nearest) = sets[name], theirs[name]
        none = int((~known.belongs.any(axis=1)).sum())
        print(f"### {name}: {len(known.paths):,d} pictures, {none:,d} of them in no category\n")
        ways = {
            "moderator": (ours[name], ours[name] >= chosen),
            "nearest prompt": (cosines, cosines >= chosen_theirs),
            "moderator, as the policy has it": (ours[name], ours[name] >= stated),
            "nearest prompt of all": (cosines, nearest),
        }
        table(known, policy, ways)
        print(f"Mean average precision, moderator less nearest prompt: {difference(ours[name], cosines, known)}\n")
        if name != "icons":
            mistakes(known, policy, ours[name], ours[name] >= chosen)
    print("| threshold | " + " | ".join(category.name for category in policy.categories) + " |")
    print("| --- |" + " --- |" * len(policy.categories))
    for title, values in (
        ("moderator, chosen on icons", chosen),
        ("moderator, as the policy has it", stated),
        ("nearest prompt, chosen on icons (cosine)", chosen_theirs),
    ):
        print(f"| {title} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
