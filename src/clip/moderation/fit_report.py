"""What was fitted, in sentences and as a table for a terminal."""

from __future__ import annotations

from clip.moderation.fitted import CategoryFit, Claim, Estimate, Figures, Fitted

__all__ = ["fit_text", "statement", "verdict_on_target"]

_RARE = 0.01


def statement(fit: CategoryFit) -> str:
    """What was measured: "at threshold 0.71: precision 0.96 (0.91–0.98), recall 0.80 (0.71–0.87), on 212 held-out
    pictures, 98 of them weapons"; or why nothing was."""
    if fit.figures is None or fit.threshold is None:
        return f"not fitted: {fit.yes} labelled pictures are {fit.name} and {fit.no} are not; {fit.reason}"
    found = fit.figures
    return (
        f"at threshold {_threshold(fit.threshold)}: precision {_estimate(found.precision)}, recall "
        f"{_estimate(found.recall)}, on {found.pictures} held-out pictures, {found.yes} of them {fit.name}"
    )


def verdict_on_target(claim: Claim) -> str:
    """Whether the policy's target is met, and if that cannot be said what it would take."""
    share = f"{claim.successes} of {claim.trials}"
    what = {"precision": f"{share} hits are right", "recall": f"{share} are found"}[claim.measure]
    bound = f"{claim.measure} is at least {_down(claim.bound)} ({claim.level:.0%} sure: {what})"
    target = f"{claim.measure} {claim.target:g}"
    if claim.is_supported:
        return f"meets {target}: {bound}"
    if not claim.trials:
        return f"cannot claim {target}: no held-out picture is a hit"
    measured = f"if it really is {claim.successes / claim.trials:.2f}"
    if claim.needed is not None:
        much = f"{measured}, about {_rounded(claim.needed)} labelled pictures like these would support it"
    else:
        much = f"{measured}, no number of labels will support it; other prompts, a head or a lower target may"
    return f"cannot claim {target}: {bound}; {much}"


def _rounded(count: int) -> str:
    """Upwards to two digits: more would pretend to be exact."""
    unit = 10 ** max(len(str(count)) - 2, 0)
    return f"{-(-count // unit) * unit:,}".replace(",", " ")


def fit_text(fitted: Fitted) -> str:
    """All of it, for a terminal: a table of before and after, then a paragraph for each category."""
    lines = [
        f"policy {fitted.policy_name}, model {fitted.model[:12]}, views {fitted.views}, seed {fitted.seed}",
        f"{fitted.pictures} pictures read, {fitted.unreadable} unreadable, {fitted.duplicates} passed over as copies",
        "",
        *_table(fitted),
    ]
    for fit in fitted.categories:
        lines += ["", f"{fit.name}: {statement(fit)}"]
        if fit.claim is not None:
            lines.append(f"  {verdict_on_target(fit.claim)}")
        if fit.figures is not None:
            lines.append(f"  {_where_rare(fit.name, fit.figures)}")
            lines.append(f"  {fit.reason}")
    return "\n".join(lines) + "\n"


def _table(fitted: Fitted) -> list[str]:
    header = (
        "category",
        "scores by",
        "threshold",
        "precision",
        "recall",
        "F1",
        "average precision",
        "calibration error",
    )
    rows = [header]
    for fit in fitted.categories:
        for name, found, threshold in (
            ("policy", fit.before, None),
            ("contrast", fit.contrast, None),
            (fit.method, fit.figures, fit.threshold),
        ):
            if found is not None:
                rows.append(
                    (
                        fit.name,
                        name if name == "policy" else f"fitted {name}",
                        "" if threshold is None else _threshold(threshold),
                        _estimate(found.precision),
                        _estimate(found.recall),
                        f"{found.f1:.2f}",
                        _estimate(found.average_precision),
                        f"{found.calibration_error:.3f}",
                    )
                )
    if len(rows) == 1:
        return ["no category was fitted"]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _where_rare(name: str, found: Figures) -> str:
    share = found.yes / found.pictures
    at = found.precision_at(_RARE)
    if at is None or share <= _RARE:
        return f"{share:.0%} of these pictures are {name}"
    return f"{share:.0%} of these pictures are {name}; where 1 of 100 is, precision would be {_estimate(at)}"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "– (no hits)"
    return f"{estimate.value:.2f} ({_down(estimate.low)}–{estimate.high:.2f})"


def _down(bound: float) -> str:
    """A lower bound is never shown higher than it is."""
    return f"{int(bound * 1000) / 1000:.3f}" if bound >= 0.9 else f"{int(bound * 100) / 100:.2f}"


def _threshold(threshold: float) -> str:
    """With as many digits as tell it from 0 and from 1."""
    for digits in (2, 3, 4, 5, 6):
        if 0 < float(text := f"{threshold:.{digits}f}") < 1:
            return text
    return f"{threshold:.3g}" if threshold < 0.5 else f"1 - {1 - threshold:.1g}"
