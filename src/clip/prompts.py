"""Class names and templates → prompts.

A template is a string with ``{}``, where the class name goes: ``"a photo of the {}"``. Where a template says
``a(n) {}`` the article follows the name: "a photo of an owl". Names and templates come as lists or from text files.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from clip.errors import ConfigError, DataError

__all__ = [
    "BACKGROUND",
    "DEFAULT_TEMPLATES",
    "checked_classes",
    "checked_templates",
    "fill",
    "parse_names",
    "read_names",
    "read_templates",
    "same_text",
    "with_article",
]

DEFAULT_TEMPLATES = (
    "{}",
    "a photo of a(n) {}",
    "a picture of a(n) {}",
    "a drawing of a(n) {}",
    "an emoji of a(n) {}",
)
"""Used where none are given: photographs, as in the captions of large models, and drawings, as in those of pocket."""

BACKGROUND = ("a photo", "a picture", "a drawing", "an emoji", "something", "an unknown object")
"""Prompts for pictures of nothing in particular, to compete with the class names."""

# By sound, not by letter: a unicorn, a European owl, a one-way street, a UFO, a ukulele, a US flag; an hour, an X-ray.
_CONSONANT_SOUND = re.compile(r"eu|ewe|one\b|once\b|ufo|uni(?!n|m)|us[aeu]|us\b|ut[eio]|uk\b|uku", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"[aeiou]|hour|heir|honest|hono|x-?ray", re.IGNORECASE)
_HAS_ARTICLE = re.compile(r"(?:an?|the)\s", re.IGNORECASE)
_SLOT = re.compile(r"(a\(n\) )?\{\}")


def with_article(name: str) -> str:
    """``name`` after "a" or "an", or as it is if it begins with an article. A rule of thumb, for English."""
    if _HAS_ARTICLE.match(name):
        return name
    is_vowel = _VOWEL_SOUND.match(name) and not _CONSONANT_SOUND.match(name)
    return f"{'an' if is_vowel else 'a'} {name}"


def fill(template: str, name: str) -> str:
    """The prompt. Raises ConfigError if the template has no ``{}``."""
    if "{}" not in template:
        raise ConfigError(f"template {template!r} has no {{}}; write {{}} where the class name goes")
    return _SLOT.sub(lambda slot: with_article(name) if slot[1] else name, template)


def same_text(text: str) -> str:
    """What is left of a text where the tokenizer makes no difference: lower case, single spaces."""
    return " ".join(text.lower().split())


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates. Raises ConfigError if there is none, or one without ``{}``."""
    if isinstance(templates, str) or not templates:
        raise ConfigError(f"templates is {templates!r}; give a list of at least one string with {{}}")
    for template in templates:
        fill(template, "")
    return tuple(templates)


def checked_classes(
    class_names: Sequence[str | Sequence[str]], background: Sequence[str] = ()
) -> list[tuple[str, ...]]:
    """Each class as its synonyms, the name that it goes by first.

    Raises ConfigError for names that are empty or twice there, and for a lone class that nothing competes with.
    """
    if isinstance(class_names, str) or not class_names:
        raise ConfigError(f"class names are {class_names!r}; give a list of at least one name")
    if isinstance(background, str) or not all(prompt.strip() for prompt in background):
        raise ConfigError(f"background is {background!r}; give a list of prompts that are not empty")
    classes = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in class_names]
    first: dict[str, int] = {}
    for i, synonyms in enumerate(classes):
        if not synonyms or not all(name.strip() for name in synonyms):
            raise ConfigError(f"class {i + 1} of {len(classes)} has no name, or an empty one; name it or remove it")
        for name in synonyms:
            key = same_text(name)
            if key in first:
                raise ConfigError(f"{name!r} names class {first[key] + 1} and class {i + 1}; remove one")
            first[key] = i
    if len(classes) == 1 and not background:
        raise ConfigError(
            f"{classes[0][0]!r} is the only class and would get probability 1 for every picture; "
            "give a second class, or background prompts"
        )
    return classes


def parse_names(text: str) -> list[str]:
    """Names between commas, as in a line of CSV: quotes protect a comma, white space around names is dropped."""
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ConfigError(f"labels {text!r} are not separated by commas ({error}); quote as in CSV") from error
    return [name.strip() for name in rows[0]] if rows else []


def read_names(path: str | os.PathLike[str]) -> list[str | list[str]]:
    """Class names of a file: one a line, or a JSON list, in which a list of strings is one class with synonyms.

    Empty lines and those that begin with ``#`` are passed over, as is a UTF-8 byte order mark.
    Raises DataError with the file and the line of what is wrong.
    """
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        return list(_lines(text, path))
    try:
        names = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: begins like a JSON list and is none: {error}") from error
    for i, name in enumerate(names):
        is_list = isinstance(name, list) and name and all(isinstance(synonym, str) for synonym in name)
        if not (isinstance(name, str) or is_list):
            raise DataError(f"{path}: item {i} is {name!r}; a string or a list of strings is expected")
    if not names:
        raise DataError(f"{path}: the list is empty; write at least one string")
    return list(names)


def read_templates(path: str | os.PathLike[str]) -> list[str]:
    """Templates of a file, one a line or as a JSON list of strings, each with ``{}``. Raises DataError otherwise."""
    templates: list[str] = []
    for i, template in enumerate(read_names(path)):
        if not isinstance(template, str) or "{}" not in template:
            raise DataError(
                f"{path}: template {i + 1}, {template!r}, has no {{}}; write {{}} where the class name goes"
            )
        templates.append(template)
    return templates


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(f"{path}: cannot be read ({error})") from error


def _lines(text: str, path: str | os.PathLike[str]) -> Sequence[str]:
    lines = [line.strip() for line in text.split("\n")]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DataError(f"{path}: has no line with text; write one name a line")
    return names
