"""How often a moderator is got round: what it catches is attacked in every way known, and shown to it again.

    report = red_team(moderator, paths, seed=0)
    print(report.table())

The same is done to what it lets through, for a moderator that flags whatever has been tampered with is no use either.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from clip.errors import ConfigError, ImageError, choices
from clip.images import ImageSource
from clip.intervals import wilson
from clip.moderation.attacks import ATTACKS, Attack
from clip.moderation.frames import decode
from clip.moderation.verdict import Verdict
from clip.moderation.views import bytes_of

__all__ = ["AttackResult", "Moderates", "RedTeamReport", "Share", "chosen_attacks", "red_team"]

_EXAMPLES = 5


class Moderates(Protocol):
    """What is attacked: a ``Moderator``, or a stand-in."""

    def moderate(self, sources: Iterable[ImageSource], *, batch_size: int = 32) -> Iterator[Verdict]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    count: int
    n: int

    def to_dict(self) -> dict[str, Any]:
        if not self.n:
            return {"count": 0, "n": 0, "share": None, "interval": None}
        return {"count": self.count, "n": self.n, "share": self.count / self.n, "interval": list(self.interval)}

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, at 95 %; all there is where nothing was counted."""
        return wilson(self.count / self.n, self.n) if self.n else (0.0, 1.0)

    def __str__(self) -> str:
        if not self.n:
            return "-"
        low, high = self.interval
        return f"{self.count / self.n:4.0%} ({low:.0%} to {high:.0%})"


@dataclasses.dataclass(frozen=True, slots=True)
class AttackResult:
    """What one attack does."""

    attack: Attack
    bypassed: Share
    """Of the pictures that are caught as they are, how many are allowed once attacked."""
    alarms: Share
    """Of the pictures that are allowed as they are, how many are not once the same is done to them."""
    examples: tuple[str, ...]
    """Paths of some that got through."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "attack": self.attack.name,
            "group": self.attack.group,
            "description": self.attack.description,
            "bypassed": self.bypassed.to_dict(),
            "false_alarms": self.alarms.to_dict(),
            "examples": list(self.examples),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class RedTeamReport:
    """All attacks on one moderator."""

    results: tuple[AttackResult, ...]
    caught: int
    """Pictures that were flagged or blocked as they are."""
    allowed: int
    unreadable: int
    seed: int

    @property
    def bypassed(self) -> Share:
        """Over all attacks; no interval is worth giving, for the attacks are no sample of anything."""
        return Share(sum(r.bypassed.count for r in self.results), sum(r.bypassed.n for r in self.results))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; keys are only ever added to."""
        return {
            "caught": self.caught,
            "allowed": self.allowed,
            "unreadable": self.unreadable,
            "seed": self.seed,
            "attacks": [result.to_dict() for result in self.results],
        }

    def table(self) -> str:
        """For people: a line for each attack, the most successful first."""
        ordered = sorted(self.results, key=lambda r: -(r.bypassed.count / r.bypassed.n if r.bypassed.n else 0))
        wide = max([len(result.attack.name) for result in self.results], default=0)
        lines = [f"{'attack':{wide}}  {'gets through':20}  {'false alarms':20}  what is done"]
        lines += [
            f"{r.attack.name:{wide}}  {r.bypassed!s:20}  {r.alarms!s:20}  {r.attack.description}" for r in ordered
        ]
        lines.append(
            f"{self.caught} pictures that are caught unattacked, {self.allowed} that are allowed, "
            f"{self.unreadable} unreadable; seed {self.seed}; 95 % intervals (Wilson)"
        )
        return "\n".join(lines)


def chosen_attacks(names: Iterable[str]) -> dict[str, Attack]:
    """Attacks by name or by group. Raises ConfigError for a name that is neither."""
    found: dict[str, Attack] = {}
    groups = {attack.group for attack in ATTACKS.values()}
    for name in names:
        if name not in ATTACKS and name not in groups:
            raise ConfigError(f"no attack is called {name!r}; choose from {choices(name, [*sorted(groups), *ATTACKS])}")
        found |= {key: attack for key, attack in ATTACKS.items() if name in (key, attack.group)}
    return found


def red_team(
    moderator: Moderates,
    sources: Iterable[ImageSource],
    *,
    attacks: Mapping[str, Attack] = ATTACKS,
    seed: int = 0,
    limit: int = 200,
    batch_size: int = 32,
) -> RedTeamReport:
    """Attacks the pictures that are flagged or blocked, and those that are allowed.

    sources: paths, or the bytes of files: they are read again for each attack.
    seed: of all chance in the attacks, which is the same for every moderator, picture by picture.
    limit: of the pictures of either kind, drawn by chance from all; each costs a file and a verdict for each attack.
    Raises ConfigError if nothing is caught: there is nothing to attack.
    """
    if limit < 1:
        raise ConfigError(f"limit is {limit}; at least one picture has to be attacked")
    known = list(sources)
    caught: list[ImageSource] = []
    allowed: list[ImageSource] = []
    unreadable = 0
    for source, verdict in zip(known, moderator.moderate(known, batch_size=batch_size), strict=True):
        if verdict.error is not None:
            unreadable += 1
        elif verdict.action == "allow":
            allowed.append(source)
        else:
            caught.append(source)
    if not caught:
        raise ConfigError(
            f"of {len(known)} pictures none is flagged or blocked as it is; pass pictures that the policy is about"
        )
    report_of = random.Random(seed)
    attacked = report_of.sample(caught, min(limit, len(caught)))
    innocent = report_of.sample(allowed, min(limit, len(allowed)))
    results = []
    for attack in attacks.values():
        through = _let_through(moderator, attack, attacked, seed, batch_size)
        alarms = _let_through(moderator, attack, innocent, seed, batch_size)
        results.append(
            AttackResult(
                attack,
                Share(sum(through), len(attacked)),
                Share(len(innocent) - sum(alarms), len(innocent)),
                tuple(_name(s) for s, passed in zip(attacked, through, strict=True) if passed)[:_EXAMPLES],
            )
        )
    return RedTeamReport(tuple(results), len(caught), len(allowed), unreadable, seed)


def _let_through(
    moderator: Moderates, attack: Attack, sources: Sequence[ImageSource], seed: int, batch_size: int
) -> list[bool]:
    """For each picture, whether its attacked file is allowed. A file that cannot be read is what the policy says."""

    def files() -> Iterator[bytes]:
        for number, source in enumerate(sources):
            yield attack.apply(_opened(source), random.Random(f"{seed} {number} {attack.name}"))

    return [verdict.action == "allow" for verdict in moderator.moderate(files(), batch_size=batch_size)]


def _opened(source: ImageSource) -> Image.Image:
    """The first frame, with its transparency."""
    try:
        picture = decode(bytes_of(source)[1])
    except ImageError as error:
        raise ImageError(f"{_name(source)}: {error}") from error
    image = Image.fromarray(picture.rgb)
    image.putalpha(255 if picture.alpha is None else Image.fromarray(np.ascontiguousarray(picture.alpha)))
    # Attacks multiply the size of a picture; a model sees no more of it than this.
    image.thumbnail((1024, 1024))
    return image


def _name(source: ImageSource) -> str:
    return "<bytes>" if isinstance(source, (bytes, bytearray)) else str(source)
