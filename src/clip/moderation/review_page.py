"""Verdicts as a page on which a person looks at them, decides, tries other thresholds, and takes labels away.

    write_atomically("review.html", review_page(moderator.moderate(paths), policy))

The page is one file. It loads and sends nothing; small copies of the pictures are within it. Decisions stay in the
browser that they were made in, under the fingerprints of policy, model and pictures, until they are exported: as
``path,category,label`` for ``clip moderate --fit``. How it looks and works is in the folder ``review``: a template, a
style, and the parts of one script.

A reviewer looks at what nobody wants to see, all day. So what may be disturbing is blurred and grey until it is asked
for, nothing moves by itself, and everything is reached without a mouse.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import heapq
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from clip.data.likeness import image_bytes
from clip.errors import ClipError, ConfigError
from clip.html_page import page_with_script, readable, thumbnail
from clip.images import read_pixels
from clip.moderation.policy import ACTIONS, Action, Category, Policy
from clip.moderation.verdict import Finding, Verdict

__all__ = ["MAX_PICTURES", "outcome", "review_page"]

MAX_PICTURES = 2000
"""Pictures on one page, so that it has some 20 MB at most and a browser stays quick."""

_SIDES = ((400, 320), (MAX_PICTURES, 192))
"""Up to so many pictures on a page, copies have so many pixels a side: about twice what they are shown at."""

_SMALLEST_SIDE = 128

_PARTS = Path(__file__).with_name("review")
_SCRIPT = ("state", "outcomes", "decisions", "cards", "list", "panel", "thresholds", "exports", "keys", "beginning")
"""Parts of the script, in their order: they share names, and nothing else on the page does."""


class _Copy(NamedTuple):
    address: str | None
    problem: str
    """Why there is none."""
    path: str
    """Where the picture is: absolute if that is a file."""


def review_page(
    verdicts: Iterable[Verdict],
    policy: Policy,
    *,
    most: int = MAX_PICTURES,
    workers: int | None = None,
    contents: Callable[[str], str | bytes] | None = None,
) -> str:
    """The page as HTML. Verdicts are read one by one and only those that are shown are kept.

    most: how many pictures are shown. Of more, it is those that cannot be read and those whose score is highest above,
    or nearest below, a threshold; the page says how many there are.
    workers: threads that read the pictures once more, for their copies; by default one for each processor.
    contents: path of a verdict → where the picture is now, if it was moved, or its bytes, if it is no file.
    Raises ConfigError for a verdict of another policy.
    """
    if most < 1:
        raise ConfigError(f"most is {most}; a page shows at least 1 picture")
    shown, total = _most_pressing(verdicts, policy, most)
    known = {category.name for category in policy.categories}
    if strange := sorted({finding.category for verdict in shown for finding in verdict.findings} - known):
        raise ConfigError(f"a verdict is about {strange[0]!r}; policy {policy.name} knows {', '.join(sorted(known))}")
    side = next((side for count, side in _SIDES if len(shown) <= count), _SMALLEST_SIDE)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        copies = list(pool.map(functools.partial(_copy, side=side, contents=contents or _same), shown))
    return page_with_script(
        f"Review: {readable(policy.name)}",
        _part("page.html"),
        script="\n".join(['"use strict";\n(() => {', *(_part(f"{name}.js") for name in _SCRIPT), "})();\n"]),
        data=_data(shown, copies, policy, total),
        values={"style": Markup(_part("page.css")), "policy": policy, "count": len(shown), "total": total},
    )


def outcome(verdict: Verdict, policy: Policy, thresholds: dict[str, float]) -> Action:
    """The action that follows if the categories named in ``thresholds`` had these thresholds instead of their own.

    What the page computes as a threshold moves. An exemption by prompts counts where the picture is a hit already;
    whether it would count for others, a verdict does not say.
    """
    if not verdict.findings:
        return verdict.action
    found: Action = "allow"
    for finding in verdict.findings:
        if finding.score >= thresholds.get(finding.category, finding.threshold):
            found = max(found, _action_if_hit(verdict, finding, policy), key=ACTIONS.index)
    return found


# What is shown --------------------------------------------------------------------------------------------------------


def _most_pressing(verdicts: Iterable[Verdict], policy: Policy, most: int) -> tuple[list[Verdict], int]:
    """Up to ``most`` of the verdicts, in their order, and how many there were."""
    kept: list[tuple[float, int, Verdict]] = []
    total = 0
    for total, verdict in enumerate(verdicts, 1):
        entry = (_pressure(verdict, policy), -total, verdict)  # numbers differ, so verdicts are never compared
        if len(kept) < most:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    return [verdict for _, _, verdict in sorted(kept, key=lambda entry: -entry[1])], total


def _pressure(verdict: Verdict, policy: Policy) -> float:
    """How much a picture asks to be looked at: the highest margin; of what cannot be read, what the policy says."""
    if not verdict.findings:
        return 1.0 if verdict.action != "allow" else 0.0
    return max(finding.margin for finding in verdict.findings)


def _action_if_hit(verdict: Verdict, finding: Finding, policy: Policy) -> Action:
    if finding.is_hit:
        return finding.action
    category = next(category for category in policy.categories if category.name == finding.category)
    milder = [
        exemption.action
        for exemption in category.exemptions
        if (exemption.path is not None and fnmatchcase(verdict.path, exemption.path))
        or (exemption.sha256 is not None and exemption.sha256 == verdict.sha256)
    ]
    return min([category.action, *milder], key=ACTIONS.index)


def _copy(verdict: Verdict, *, side: int, contents: Callable[[str], str | bytes]) -> _Copy:
    source = contents(verdict.path)
    # Labels are read wherever the browser has put them, so paths are whole.
    path = os.path.abspath(source) if isinstance(source, str) else verdict.path  # noqa: PTH100
    if verdict.error is not None:
        return _Copy(None, "cannot be read", path)
    try:
        data = image_bytes(Path(source)) if isinstance(source, str) else source
        return _Copy(thumbnail(read_pixels(data, shorter_side=side), side=side), "", path)
    except (ClipError, OSError):
        is_gone = isinstance(source, str) and not os.path.lexists(source)
        return _Copy(None, "not there any more" if is_gone else "cannot be read any more", path)


def _same(path: str) -> str:
    return path


# What the script is given ---------------------------------------------------------------------------------------------


def _data(shown: Sequence[Verdict], copies: Sequence[_Copy], policy: Policy, total: int) -> dict[str, Any]:
    """Plain JSON."""
    model = shown[0].model if shown else ""
    decided_by = shown[0].policy if shown else policy.fingerprint
    # One picture that could be read tells all thresholds, also those that were fitted or calibrated.
    told = next((verdict.findings for verdict in shown if verdict.findings), ())
    thresholds = {finding.category: (finding.threshold, finding.threshold_origin) for finding in told}
    return {
        "policy": {"name": readable(policy.name), "fingerprint": decided_by},
        "model": model,
        "set": hashlib.sha256("\0".join(copy.path for copy in copies).encode("utf-8", "surrogatepass")).hexdigest(),
        "total": total,
        "complete_above": _complete_above(shown, policy) if total > len(shown) else None,
        "categories": [_category(category, thresholds.get(category.name)) for category in policy.categories],
        "pictures": [_picture(verdict, copy, policy) for verdict, copy in zip(shown, copies, strict=True)],
    }


def _complete_above(shown: Sequence[Verdict], policy: Policy) -> float:
    """The margin from which on every picture of the whole set is on the page."""
    return min(_pressure(verdict, policy) for verdict in shown)


def _category(category: Category, threshold: tuple[float, str] | None) -> dict[str, Any]:
    value, origin = threshold or (category.threshold or 0.5, "stated")
    return {
        "name": category.name,
        "description": category.description,
        "action": category.action,
        "severity": category.severity,
        "threshold": value,
        "origin": origin,
    }


def _picture(verdict: Verdict, copy: _Copy, policy: Policy) -> dict[str, Any]:
    folder, name = os.path.split(copy.path)
    place = {category.name: i for i, category in enumerate(policy.categories)}
    is_file = os.path.isabs(copy.path) and os.path.lexists(copy.path)  # noqa: PTH117
    return {
        "path": copy.path,
        "name": readable(name or copy.path),
        "folder": readable(folder),
        "link": Path(copy.path).as_uri() if is_file else None,
        "copy": copy.address,
        "problem": copy.problem,
        "action": verdict.action,
        "error": None if verdict.error is None else readable(verdict.error),
        "notes": [readable(note) for note in verdict.notes],
        "frames": verdict.frames,
        "sha256": verdict.sha256,
        "findings": [
            {
                **dataclasses.asdict(finding),
                "category": place[finding.category],
                "prompt": readable(finding.prompt),
                "exemption": None if finding.exemption is None else readable(finding.exemption),
                "is_hit": finding.is_hit,
                "action_if_hit": _action_if_hit(verdict, finding, policy),
            }
            for finding in verdict.findings
        ],
    }


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")
