"""What is wanted of pictures, as data: categories in words, thresholds, and what follows. Files: ``policy_file``.

What cannot be meant is refused where it is made: each class checks its values, by the functions at the end.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from clip.errors import ConfigError, choices
from clip.prompts import checked_templates, same_text

__all__ = [
    "ACTIONS",
    "MEASURES",
    "SEVERITIES",
    "Action",
    "Category",
    "Exemption",
    "Policy",
    "Severity",
    "Target",
    "check_choice",
    "check_milder",
    "check_name",
    "check_prompt",
    "check_sha256",
    "check_share",
    "excerpt",
]

Action = Literal["allow", "flag", "block"]
ACTIONS: tuple[Action, ...] = ("allow", "flag", "block")
"""From the mildest: of several categories that a picture falls into, the strictest decides."""

Severity = Literal["low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")


Measure = Literal["precision", "recall"]
MEASURES: tuple[Measure, ...] = ("precision", "recall")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a threshold is chosen for, where no number is given."""

    measure: Measure
    """Of the pictures that are hit, the share that belongs to the category; of those that belong, the share hit."""
    value: float
    """Above 0 and below 1."""

    def __post_init__(self) -> None:
        check_choice("the measure of a target", self.measure, MEASURES)
        check_share(self.measure, self.value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exemption:
    """Pictures of a category to which something milder happens. Exactly one of the three says which."""

    prompts: tuple[str, ...] = ()
    """Words that fit the picture better than those of the category do."""
    path: str | None = None
    """Pattern (``fnmatch``) of the whole path, as it was given."""
    sha256: str | None = None
    """Of the file, in lower-case hexadecimal digits."""
    action: Action = "allow"

    def __post_init__(self) -> None:
        given = [name for name in ("prompts", "path", "sha256") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(f"an exception has {' and '.join(given) or 'none'} of prompts, path and sha256; give one")
        for prompt in _strings("prompts of an exception", self.prompts):
            check_prompt(prompt)
        if self.sha256 is not None:
            check_sha256(self.sha256)
        check_choice("action", self.action, ACTIONS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One thing that is looked for."""

    name: str
    """Lower-case words joined by hyphens."""
    prompts: tuple[str, ...]
    """What such pictures show, each in words of its own; at least one."""
    counter_prompts: tuple[str, ...] = ()
    """What looks or sounds like it and is none: a water pistol, a pillow fight."""
    examples: tuple[str, ...] = ()
    """Paths of such pictures, absolute."""
    counter_examples: tuple[str, ...] = ()
    """Paths of pictures that are none."""
    threshold: float | None = None
    """The score (0 to 1) from which on a picture belongs to it; exactly one of this and ``target`` is given."""
    target: Target | None = None
    action: Action = "flag"
    severity: Severity = "medium"
    exemptions: tuple[Exemption, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        check_name("the name of a category", self.name)
        where = f"category {self.name}"
        if not self.prompts:
            raise ConfigError(f"{where} has no prompts; give at least one")
        if (self.threshold is None) == (self.target is None):
            has = "neither threshold nor target" if self.target is None else "both threshold and target"
            raise ConfigError(f"{where} has {has}; give one of them")
        if self.threshold is not None:
            check_share("threshold", self.threshold)
        check_choice("action", self.action, ACTIONS)
        check_choice("severity", self.severity, SEVERITIES)
        for exemption in self.exemptions:
            check_milder(exemption.action, self.action)
        texts = {"prompts": self.prompts, "counter-prompts": self.counter_prompts}
        texts |= {f"exception {i}": exemption.prompts for i, exemption in enumerate(self.exemptions, start=1)}
        _check_distinct(where, texts)


@dataclasses.dataclass(frozen=True, kw_only=True)  # no slots: what is computed once is kept beside the fields
class Policy:
    """All that pictures are held against."""

    name: str
    categories: tuple[Category, ...]
    background: tuple[str, ...] = ()
    """Prompts for pictures that are nobody's concern, beside those that every policy has."""
    templates: tuple[str, ...] = ()
    """Strings with ``{}`` around each prompt; those of ``clip.prompts`` where there are none."""
    unreadable: Action = "flag"
    """For a file that is no picture, or is too large: nobody knows what it shows."""
    description: str = ""

    def __post_init__(self) -> None:
        check_name("the name of a policy", self.name)
        if not self.categories:
            raise ConfigError(f"policy {self.name} has no categories; give at least one")
        names = [category.name for category in self.categories]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"policy {self.name} has two categories named {twice[0]}; rename one")
        if self.templates:
            checked_templates(self.templates)
        check_choice("unreadable", self.unreadable, ACTIONS)
        for category in self.categories:
            _check_distinct(
                f"category {category.name}", {"prompts": category.prompts, "the background": self.background}
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides. Example pictures are read, once, and count by their bytes.

        So it is the same for a policy that was moved with its pictures, and where only comments, descriptions or the
        order of keys and categories differ; any other change gives another. Raises ConfigError for an example that is
        gone.
        """
        value = self.to_dict()
        value["categories"].sort(key=lambda category: category["name"])
        del value["description"]
        for category in value["categories"]:
            del category["description"]
            for key in ("examples", "counter_examples"):
                category[key] = [_sha256_of(path) for path in category[key]]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return value


def _sha256_of(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ConfigError(f"the example {path} cannot be read ({error}); put it back, or take it out") from error


# What values may be. The reader of files calls these too, and adds the line -------------------------------------------

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LONGEST_NAME = 64
_JOINERS = "\u200c\u200d"
"""Invisible, and a part of words in some scripts, and of emoji."""


def check_name(what: str, name: str) -> None:
    """Raises ConfigError for a name that is not made of lower-case words joined by hyphens."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        meant = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].strip("-")
        raise ConfigError(
            f"{what} is {excerpt(name)}; write lower-case letters, digits and single hyphens, at most {_LONGEST_NAME}"
            + (f": {meant}" if meant else "")
        )


def check_prompt(prompt: str) -> None:
    """Raises ConfigError for a prompt of punctuation alone, and for one with line breaks or control characters."""
    if not any(unicodedata.category(character)[0] in "LNS" for character in prompt):  # letters, numbers, emoji
        raise ConfigError(f"the prompt {excerpt(prompt)} has no word; write what such pictures show, or remove it")
    for character in prompt:
        if not character.isprintable() and character not in _JOINERS:
            raise ConfigError(f"the prompt {excerpt(prompt)} has the character {character!r}; write plain text")


def check_share(what: str, value: float) -> None:
    """Raises ConfigError for what is not above 0 and below 1."""
    if not 0 < value < 1:
        remedy = f" (for {value:g} %, write {value / 100:g})" if 10 <= value < 100 else ""
        raise ConfigError(f"{what} is {value:g}; it must be above 0 and below 1{remedy}")


def check_choice(what: str, value: str, known: Sequence[str]) -> None:
    """Raises ConfigError for a word that is none of the known ones."""
    if value not in known:
        raise ConfigError(f"{what} is {excerpt(value)}; it must be one of {choices(value, known)}")


def check_milder(action: Action, of_category: Action) -> None:
    """Raises ConfigError for an exception that is no milder than its category."""
    if ACTIONS.index(action) >= ACTIONS.index(of_category):
        milder = " or ".join(ACTIONS[: ACTIONS.index(of_category)])
        raise ConfigError(
            f"the exception's action is {action}, and that of its category {of_category}; "
            + (f"it must be {milder}" if milder else "nothing is milder: remove the exception")
        )


def check_sha256(digest: str) -> None:
    """Raises ConfigError for what is not 64 lower-case hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ConfigError(
            f"sha256 is {excerpt(digest)}, {len(digest)} characters; it must be the 64 hexadecimal digits that "
            "'sha256sum FILE' prints"
        )


def _strings(what: str, values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ConfigError(f"{what}: {excerpt(values)} is one string; give a tuple of strings")
    return tuple(values)


def _check_distinct(where: str, lists: dict[str, tuple[str, ...]]) -> None:
    """That no prompt is in two lists, or twice in one: it would count for and against."""
    first: dict[str, str] = {}
    for what, prompts in lists.items():
        for prompt in _strings(f"{what} of {where}", prompts):
            check_prompt(prompt)
            if (key := same_text(prompt)) in first:
                raise ConfigError(f"{where}: {excerpt(prompt)} is in {what} and in {first[key]}; remove one")
            first[key] = what


def excerpt(text: str, length: int = 60) -> str:
    """The text for a message: quoted, on one line, and not too long."""
    return repr(text if len(text) <= length else text[: length - 1] + "…")
