"""What a schema asks of a tree: keys that are known, texts, numbers, one of several words. Faults are collected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import ParamSpec

from clip.errors import ConfigError, choices
from clip.moderation.policy import check_choice, excerpt
from clip.moderation.yaml_tree import Fault, Listing, Mapping, Node, Text

__all__ = ["LONGEST_TEXT", "MOST_TEXTS", "NOTHING", "Taken", "Values", "described"]

MOST_TEXTS, LONGEST_TEXT = 200, 2000
"""Entries of one list; characters of one text."""

NOTHING = ("", "~", "null", "Null", "NULL")
"""What YAML takes for no value, unless it is quoted."""

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)

Taken = dict[str, tuple[str, int]]
"""What may be there once → the list that has it, and the line."""

P = ParamSpec("P")


class Values:
    """Reads values of nodes. What is wrong becomes a fault with its line, and None: the rest is looked at, too."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def fault(self, line: int, message: str) -> None:
        self.faults.append(Fault(line, message))

    def passes(self, line: int, check: Callable[P, object], *arguments: P.args, **options: P.kwargs) -> bool:
        """Whether ``check`` raises no ConfigError; one that it raises is a fault of this line."""
        try:
            check(*arguments, **options)
        except ConfigError as error:
            self.fault(line, str(error))
            return False
        return True

    def mapping(
        self, node: Node, what: str, known: Sequence[str], *, required: Sequence[str] = (), line: int | None = None
    ) -> dict[str, Node]:
        """Key → value, of the known keys. line: where a key that is missing is told; by default where the mapping
        begins."""
        if not isinstance(node, Mapping):
            self.fault(node.line, f"{what} is {described(node)}; a mapping with {', '.join(known)} is expected")
            return {}
        keys: dict[str, Node] = {}
        meant: list[str] = []
        for key, value in node.pairs:
            if key.text in known:
                keys[key.text] = value
            else:
                listed = choices(key.text, known)
                self.fault(key.line, f"{what} has no key {excerpt(key.text)}; its keys are {listed}")
                meant += difflib.get_close_matches(key.text, known, n=1)
        for name in required:
            if name not in keys and name not in meant:  # a key that is only misspelt is told once
                self.fault(node.line if line is None else line, f"{what} has no {name!r}; add it")
        return keys

    def text(self, node: Node, what: str) -> Text | None:
        """A text that is not empty, white space around it and line breaks inside taken out."""
        if not isinstance(node, Text):
            hint = "; quote it if its colon belongs to the text" if isinstance(node, Mapping) else ""
            self.fault(node.line, f"{what} is {described(node)}, and a text is expected{hint}")
            return None
        text = " ".join(node.text.split())
        if not text or (text in NOTHING and not node.is_quoted):
            hint = f"; write '{text}' in quotes if the word is meant" if text else ""
            self.fault(node.line, f"{what} is empty; give it a value, or remove it{hint}")
            return None
        if len(node.text) > LONGEST_TEXT:
            self.fault(node.line, f"{what} has {len(node.text):,} characters; the limit is {LONGEST_TEXT:,}")
            return None
        return Text(text, node.line, node.is_quoted)

    def texts(self, node: Node | None, what: str) -> list[Text]:
        """A list of texts, or a single one."""
        if node is None:
            return []
        items = node.items if isinstance(node, Listing) else (node,)
        if not items:
            self.fault(node.line, f"{what} is an empty list; give an entry, or remove it")
        if len(items) > MOST_TEXTS:
            self.fault(node.line, f"{what} has {len(items)} entries; the limit is {MOST_TEXTS}")
            return []
        entry = f"an entry of {what}" if isinstance(node, Listing) else what
        texts = [self.text(item, entry) for item in items]
        return [text for text in texts if text is not None]

    def once(self, key: str, text: Text, what: str, taken: Taken) -> None:
        if key in taken:
            other, line = taken[key]
            self.fault(text.line, f"{excerpt(text.text)} of {what} is in {other}, too, on line {line}; remove one")
        else:
            taken[key] = (what, text.line)

    def choice(self, node: Node | None, what: str, known: Sequence[str], default: str) -> str | None:
        if node is None:
            return default
        text = self.text(node, what)
        return text.text if text and self.passes(text.line, check_choice, what, text.text, known) else None

    def number(self, node: Node, what: str) -> float | None:
        text = self.text(node, what)
        if text is None:
            return None
        if text.is_quoted or not _NUMBER.fullmatch(text.text):
            self.fault(text.line, f"{what} is {excerpt(text.text)}; {_as_number(text)}")
            return None
        return float(text.text)


def described(node: Node) -> str:
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Listing):
        return "a list"
    if node.text in NOTHING and not node.is_quoted:
        return "empty"
    return f"the text {excerpt(node.text)}"


def _as_number(text: Text) -> str:
    """The remedy for what should have been a number."""
    bare = text.text.strip("\"' ")
    if percent := re.fullmatch(r"(\d+(?:\.\d*)?)\s*%", bare):
        return f"for a percentage write {float(percent[1]) / 100:g}"
    if re.fullmatch(r"\d*,\d+", bare):
        return f"write a point for the comma: {bare.replace(',', '.')}"
    if _NUMBER.fullmatch(bare):
        return f"write the number without quotes: {bare}"
    return "a number is expected, such as 0.5"
