"""What fitting brings: a packaged policy with thresholds and heads learned from icons, tried on other drawings.

    python recipes/moderation/fit.py --work build/pocket
    python recipes/moderation/fit.py --simulate

Run after ``pictures.py``, whose three sets it reads: fitted on ``icons``, half of which judge it, then tried on
``noto`` and ``clipart``, which no part of the fit has seen. ``--simulate`` needs no pictures: how often claims hold
where the truth is known.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from statistics import NormalDist

import numpy as np

from clip.moderation.fit_plot import save_fit_figure
from clip.moderation.fit_report import fit_text
from clip.moderation.fitted import Estimate, Figures
from clip.moderation.fitting import fit_measured, judge
from clip.moderation.labels import read_labels
from clip.moderation.learning import fit_category
from clip.moderation.measuring import Sample, measure
from clip.moderation.moderator import Moderator
from clip.moderation.policy import Category, Policy, Target
from clip.moderation.policy_file import read_policy

RUNS = 500


def with_target(policy: Policy, target: Target) -> Policy:
    categories = tuple(dataclasses.replace(each, threshold=None, target=target) for each in policy.categories)
    return dataclasses.replace(policy, categories=categories)


def on_pictures(folder: Path, model: str, policy_name: str, target: Target) -> None:
    policy = read_policy(policy_name)
    sets = {}
    moderator = Moderator.open(policy, model=model)
    for name in ("icons", "noto", "clipart"):
        sets[name] = measure(moderator, read_labels(folder / f"{name}.csv", policy))
    print(f"# The packaged policy, its thresholds kept\n\n{fit_text(fit_measured(moderator, sets['icons']))}")
    before = {name: judge(moderator, sets[name]) for name in ("noto", "clipart")}

    # The same words, so the same contrasts; only the policy's fingerprint is another.
    moderator = Moderator.open(with_target(policy, target), model=model)
    for heads in (False, "auto"):
        fitted = fit_measured(moderator, sets["icons"], heads=heads)
        print(f"# Target {target.measure} {target.value:g}, heads: {heads}\n\n{fit_text(fitted)}")
        for name, by_policy in before.items():
            print(f"## Tried on {name}\n")
            for category, found in judge(moderator, sets[name], fitted=fitted).items():
                print(f"{category:16} packaged policy  {line(by_policy[category])}")
                print(f"{'':16} fitted           {line(found)}")
            print()
    fitted.save(folder / "restricted-goods.fit.json")
    for ending in ("svg", "png"):
        save_fit_figure(fitted, folder / f"fit.{ending}")


def line(found: Figures) -> str:
    def shown(estimate: Estimate | None) -> str:
        return f"{estimate.value:.2f} ({estimate.low:.2f}–{estimate.high:.2f})" if estimate else "– (no hits)      "

    return (
        f"precision {shown(found.precision)}, recall {shown(found.recall)}, F1 {found.f1:.2f}, average precision "
        f"{shown(found.average_precision)}; {found.yes} of {found.pictures}"
    )


def simulate(pictures: int, share: float, distance: float, target: Target) -> None:
    """Contrasts are normal, N(distance, 1) for pictures that belong: so the truth about each threshold is known."""
    normal = NormalDist()
    category = Category(name="simulated", prompts=("x",), target=target)

    def truth(cut: float) -> float:
        recall, false_alarms = 1 - normal.cdf(cut - distance), 1 - normal.cdf(cut)
        if target.measure == "recall":
            return recall
        hits = share * recall + (1 - share) * false_alarms
        return share * recall / hits if hits else 1.0

    holds = claimed = wrong = usual = 0
    for seed in range(RUNS):
        random = np.random.default_rng(seed)
        belongs = random.random(pictures) < share
        contrasts = random.normal(distance * belongs, 1)
        sample = Sample(contrasts, np.ones((pictures, 1), np.float32), belongs, np.arange(pictures))
        fitted = fit_category(category, sample, seed=seed, heads=False).fit
        assert fitted.slope and fitted.intercept is not None and fitted.threshold is not None and fitted.claim
        true = truth((np.log(fitted.threshold / (1 - fitted.threshold)) - fitted.intercept) / fitted.slope)
        holds += true >= fitted.claim.bound
        claimed += fitted.claim.is_supported
        wrong += fitted.claim.is_supported and true < target.value
        # What is often done instead: the best threshold that reaches the target, on the pictures that it is chosen by.
        order = np.argsort(-contrasts)
        right = np.cumsum(belongs[order])
        shares = right / (np.arange(pictures) + 1) if target.measure == "precision" else right / belongs.sum()
        reached = np.flatnonzero(shares >= target.value)
        place = reached[-1 if target.measure == "precision" else 0] if len(reached) else 0
        usual += truth(contrasts[order][place]) < target.value
    print(
        f"| {pictures} | {share:.0%} | {distance:g} | {target.measure} {target.value:g} | {holds / RUNS:.1%} | "
        f"{claimed / RUNS:.1%} | {wrong / RUNS:.1%} | {usual / RUNS:.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--folder", type=Path, help="of the three sets; default: WORK/moderation")
    parser.add_argument("--precision", type=float, default=0.9, help="target of every category")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--policy", default="restricted-goods")
    parser.add_argument("--simulate", action="store_true")
    arguments = parser.parse_args()
    if not arguments.simulate:
        target = Target(measure="precision", value=arguments.precision)
        folder = arguments.folder or arguments.work / "moderation"
        on_pictures(folder, arguments.model, arguments.policy, target)
        return
    print("| pictures | belong | distance | target | bound holds | claimed | claimed, not met | usual way, not met |")
    print("|---:|---:|---:|---|---:|---:|---:|---:|")
    for pictures, share, distance, measure_, value in (
        (200, 0.4, 2.5, "precision", 0.95),
        (400, 0.4, 3.2, "precision", 0.95),
        (1600, 0.4, 3.0, "precision", 0.95),
        (800, 0.1, 3.0, "precision", 0.8),
        (400, 0.5, 2.0, "recall", 0.95),
        (800, 0.5, 2.5, "recall", 0.9),
    ):
        simulate(pictures, share, distance, Target(measure=measure_, value=value))


if __name__ == "__main__":
    main()
