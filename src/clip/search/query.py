"""The language of queries: ``dog AND beach NOT person``, ``"red car"^2 OR +photo.jpg``, or simply words.

    query   = all { "OR" all }
    all     = part { [ "AND" ] part }            side by side means AND
    part    = [ "NOT" ] ( term | "(" query ")" )
    term    = ( words | quoted | "+" picture ) [ "^" weight ]

Words that stand together are one text, as a model reads it. Only AND, OR and NOT in capitals are operators, and only
parentheses, ``^``, and ``+`` or ``"`` at the start of a word are signs; in quotes nothing is (``\\"`` is a quote).
docs/queries.md has examples.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, ShapeError

__all__ = ["MAXIMUM_LENGTH", "MAXIMUM_NESTING", "MAXIMUM_TERMS", "WEIGHTS", "All", "Any", "Query", "Term", "parse"]

MAXIMUM_LENGTH = 10_000
"""Characters of a query."""

MAXIMUM_TERMS = 64
"""Each costs an embedding, and a search of its own."""

MAXIMUM_NESTING = 32
"""Parentheses in parentheses."""

WEIGHTS = (0.01, 100.0)
"""Smallest and largest."""


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """What is looked for: words, or a picture."""

    text: str
    """The words, or the file of the picture."""
    is_image: bool = False
    weight: float = 1.0
    """How much it says in the order of the hits, compared with the other terms."""
    is_given: bool = dataclasses.field(default=False, compare=False)
    """A picture that was handed to ``parse`` beside the text."""

    def __str__(self) -> str:
        is_plain = not self.is_image and _PLAIN.fullmatch(self.text) and not _OPERATOR.search(self.text)
        words = self.text if is_plain else '"{}"'.format(re.sub(r'(["\\])', r"\\\1", self.text))
        weight = "" if self.weight == 1 else f"^{str(self.weight).removesuffix('.0')}"
        return f"{'+' if self.is_image else ''}{words}{weight}"


@dataclasses.dataclass(frozen=True, slots=True)
class All:
    """Every part holds, and nothing of ``without``."""

    parts: tuple[Node, ...]
    """At least one: only exclusions would find nearly everything."""
    without: tuple[Node, ...] = ()

    def __str__(self) -> str:
        return " ".join([" AND ".join(map(_nested, self.parts)), *(f"NOT {_nested(node)}" for node in self.without)])


@dataclasses.dataclass(frozen=True, slots=True)
class Any:
    """At least one part holds."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " OR ".join(map(str, self.parts))  # AND and NOT bind closer


Node = Term | All | Any


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """What ``parse`` understood; ``str`` gives a text that is understood as the same."""

    tree: Node

    @property
    def terms(self) -> tuple[Term, ...]:
        """All of them, T, as they stand in the tree: parts first, then what is excluded."""
        return tuple(term for term, _ in _leaves(self.tree))

    @property
    def is_negated(self) -> tuple[bool, ...]:
        """For each term, whether a picture of it is *not* wanted."""
        return tuple(is_negated for _, is_negated in _leaves(self.tree))

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of the terms that are words, in order."""
        return tuple(term.text for term in self.terms if not term.is_image)

    @property
    def images(self) -> tuple[str, ...]:
        """The files of the terms that are pictures: those that the text names, in order, then those that were given."""
        terms = self.terms
        return tuple(terms[place].text for place in self._pictures())

    def arranged(self, texts: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings of the terms (T, E), from those of ``texts`` and of ``images``; none may be shaped (0, E)."""
        words = [place for place, term in enumerate(self.terms) if not term.is_image]
        pictures = self._pictures()
        if (len(texts), len(images)) != (len(words), len(pictures)):
            raise ShapeError(
                f"the query has {len(words)} texts and {len(pictures)} images; there are embeddings of {len(texts)} "
                f"and {len(images)}"
            )
        embeddings = np.empty((len(self.terms), (texts if words else images).shape[1]), np.float32)
        if words:
            embeddings[words] = texts
        if pictures:
            embeddings[pictures] = images
        return embeddings

    def _pictures(self) -> list[int]:
        """Places of the terms that are pictures, in the order of ``images``."""
        terms = self.terms
        places = [place for place, term in enumerate(terms) if term.is_image]
        return sorted(places, key=lambda place: terms[place].is_given)

    def __str__(self) -> str:
        return str(self.tree)


def parse(text: str, images: Sequence[str] = ()) -> Query:
    """The query of a text, of pictures, or of both: then all of them are looked for.

    Raises ConfigError, which says where, for a text that is no query, and for one that only excludes.
    """
    if len(text) > MAXIMUM_LENGTH:
        raise ConfigError(f"the query has {len(text):,} characters; the limit is {MAXIMUM_LENGTH:,}")
    parts: list[Node] = []
    if text.strip():
        parts.append(_Parser(text).query())
    parts += [Term(_checked_file(image, None), is_image=True, is_given=True) for image in images]
    if not parts:
        raise ConfigError("the query is empty; give words, or a picture")
    query = Query(_all(parts, []))
    if len(query.terms) > MAXIMUM_TERMS:
        raise ConfigError(f"the query has {len(query.terms)} terms; the limit is {MAXIMUM_TERMS}")
    return query


def _leaves(node: Node, is_negated: bool = False) -> Iterator[tuple[Term, bool]]:
    if isinstance(node, Term):
        yield node, is_negated
        return
    for part in node.parts:
        yield from _leaves(part, is_negated)
    if isinstance(node, All):
        for part in node.without:
            yield from _leaves(part, not is_negated)


def _nested(node: Node) -> str:
    return str(node) if isinstance(node, Term) else f"({node})"


def _all(parts: list[Node], without: list[Node]) -> Node:
    """The same, however it was put into parentheses: a AND (b NOT c) is (a AND b) NOT c."""
    flat: list[Node] = []
    excluded: list[Node] = []
    for part in parts:
        flat += part.parts if isinstance(part, All) else [part]
        excluded += part.without if isinstance(part, All) else []
    for node in without:
        excluded += node.parts if isinstance(node, Any) else [node]
    return flat[0] if len(flat) == 1 and not excluded else All(tuple(flat), tuple(excluded))


def _any(parts: list[Node]) -> Node:
    flat: list[Node] = []
    for part in parts:
        flat += part.parts if isinstance(part, Any) else [part]
    return flat[0] if len(flat) == 1 else Any(tuple(flat))


# Words and signs ------------------------------------------------------------------------------------------------------

_OPERATOR = re.compile(r"(?<!\S)(?:AND|OR|NOT)(?!\S)")
_WORD = r'[^\s()^"+][^\s()^]*'
_PLAIN = re.compile(rf"{_WORD}(?: {_WORD})*")  # a text that needs no quotes
_SPACE = re.compile(r"\s*")
_TOKEN = re.compile(
    rf"""(?P<sign>[()])
    |   (?P<weight>\^(?P<number>[^\s()^]*))
    |   (?P<plus>\+?)(?: "(?P<quoted>(?:[^"\\]|\\.)*)" | (?P<open>") | (?P<word>{_WORD}) )
    |   (?P<alone>\+)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}", re.ASCII)

Kind = Literal["(", ")", "^", "AND", "OR", "NOT", "word", "quoted", "picture", "end"]


class _Token(NamedTuple):
    kind: Kind
    value: str
    """Of a word, a quoted text, a picture: what it says; of a weight, its number."""
    start: int
    is_apart: bool
    """Whether there is space before it."""


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while True:
        start = _end(_SPACE.match(text, position))
        is_apart = start > position or not position
        if start == len(text):
            yield _Token("end", "", start, is_apart)
            return
        match = _TOKEN.match(text, start)
        assert match is not None, "each character begins a token"
        position = match.end()
        if sign := match["sign"]:
            yield _Token("(" if sign == "(" else ")", sign, start, is_apart)
        elif match["weight"]:
            yield _Token("^", match["number"], start, is_apart)
        elif match["alone"]:
            raise _refused(start, "a picture must follow +, as in +photo.jpg; put a plus that is meant so in quotes")
        elif match["open"]:
            raise _refused(start, 'a quote that is not closed; end it with ", or write \\" in quotes for the sign')
        elif match["quoted"] is not None:
            value = _ESCAPE.sub(r"\1", match["quoted"])
            if not value.strip():
                raise _refused(start, "there is nothing in these quotes")
            yield _Token("picture" if match["plus"] else "quoted", value, start, is_apart)
        elif match["plus"]:
            position = _end_of_file(text, start + 1)
            yield _Token("picture", text[start + 1 : position], start, is_apart)
        else:
            word = match["word"]
            if word in ("AND", "OR", "NOT"):
                yield _Token(word, word, start, is_apart)  # type: ignore[arg-type]  # one of these three
            else:
                yield _Token("word", word, start, is_apart)


def _end(match: re.Match[str] | None) -> int:
    assert match is not None, "the pattern matches nothing, too"
    return match.end()


def _end_of_file(text: str, start: int) -> int:
    """Where the name of a file ends that is not in quotes: ``photo(1).jpg`` is one, ``(dog +photo.jpg)`` ends it."""
    depth = 0
    for position in range(start, len(text)):
        character = text[position]
        depth += (character == "(") - (character == ")")
        if character.isspace() or character == "^" or depth < 0:
            return position
    return len(text)


def _checked_file(name: str, start: int | None) -> str:
    if not name.strip() or "\0" in name:
        raise _refused(start, f"{name!r} is not the name of a picture")
    return name


def _refused(start: int | None, reason: str) -> ConfigError:
    place = "" if start is None else f", column {start + 1}"
    return ConfigError(f"query{place}: {reason}")


# Grammar --------------------------------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens)
        self._depth = 0
        self._terms = 0

    def query(self) -> Node:
        node = self._any_of()
        if self._next.kind != "end":  # only a ")" ends a query early
            raise _refused(self._next.start, '")" without "("; put it in quotes if it belongs to the text')
        return node

    def _take(self) -> _Token:
        token = self._next
        if token.kind != "end":
            self._next = next(self._tokens)
        return token

    def _any_of(self) -> Node:
        parts = [self._all_of()]
        while self._next.kind == "OR":
            self._take()
            parts.append(self._all_of())
        return _any(parts)

    def _all_of(self) -> Node:
        start = self._next.start
        parts: list[Node] = []
        without: list[Node] = []
        while True:
            if self._next.kind == "NOT":
                token = self._take()
                node = self._part()
                if any(is_excluded for _, is_excluded in _leaves(node)):
                    raise _refused(token.start, "an exclusion of an exclusion; say what is wanted instead")
                without.append(node)
            else:
                parts.append(self._part())
            if self._next.kind == "AND":
                self._take()
            elif self._next.kind in (")", "OR", "end"):
                break
        if not parts:
            raise _refused(
                start, "there are only exclusions, which nearly every picture fulfils; say what to find: dog NOT cat"
            )
        return _all(parts, without)

    def _part(self) -> Node:
        token = self._take()
        if token.kind == "(":
            node = self._group(token)
        elif token.kind in ("word", "quoted", "picture"):
            return self._term(token)
        else:
            found = "the end" if token.kind == "end" else f"{token.kind}"
            raise _refused(
                token.start,
                f"expected words, a picture or a parenthesis, found {found}; put it in quotes if it is text",
            )
        if self._next.kind == "^":
            raise _refused(self._next.start, "a weight belongs to a term, not to parentheses: (dog^2 OR cat^2)")
        return node

    def _group(self, opened: _Token) -> Node:
        self._depth += 1
        if self._depth > MAXIMUM_NESTING:
            raise _refused(opened.start, f"more than {MAXIMUM_NESTING} parentheses in one another")
        node = self._any_of()
        closed = self._take()
        if closed.kind != ")":
            raise _refused(opened.start, '"(" without ")"; put it in quotes if it belongs to the text')
        self._depth -= 1
        return node

    def _term(self, token: _Token) -> Term:
        self._terms += 1
        if self._terms > MAXIMUM_TERMS:
            raise _refused(token.start, f"more than {MAXIMUM_TERMS} terms")
        words = [token.value]
        if token.kind == "word":
            while self._next.kind == "word":
                words.append(self._take().value)
        is_image = token.kind == "picture"
        if is_image:
            _checked_file(token.value, token.start)
        weight = self._weight() if self._next.kind == "^" else 1.0
        return Term(" ".join(words), is_image, weight)

    def _weight(self) -> float:
        token = self._take()
        weight = float(token.value) if _NUMBER.fullmatch(token.value) else -1.0
        low, high = WEIGHTS
        if token.is_apart or not low <= weight <= high:
            raise _refused(
                token.start,
                f"{token.value!r} is no weight; one is a number from {low:g} to {high:g} directly behind the term, as "
                'in dog^2; put a "^" that belongs to the text in quotes',
            )
        return weight
