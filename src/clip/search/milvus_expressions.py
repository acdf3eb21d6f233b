"""Conditions → the filter language of Milvus.

Milvus compares strings by their bytes and matches ``like`` patterns, but servers differ in how a literal escapes a
quote, a backslash or a wildcard, in what they make of a newline, and no string of theirs may be other than UTF-8. So
texts are kept in a spelling of our own, in which none of that occurs, and nothing is left to be escaped. It keeps
what matters: two texts compare as their bytes do, and the spelling of a beginning is the beginning of the spelling.

Metadata are kept by type: ``facets["n:year"]`` exists only if ``year`` is a number. A server that takes true for 1, or
a string for something greater than a number, then still answers as ``Condition`` says.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from clip.errors import ConfigError
from clip.search.store import COLUMNS, Condition, Row, glob_matches

__all__ = ["Filter", "facets", "filter_of", "fulfils", "path_of", "spelled", "spelled_path", "text_of"]

_AVOIDED = '"%\\_\n\r'
"""Ends a literal, is a wildcard, begins an escape, is a wildcard, may not stand in a literal (two)."""
_SPELLING: dict[int, str] = {}
for _character in _AVOIDED:  # each becomes the character before it and a digit, and that one too, so order is kept
    _before = chr(ord(_character) - 1)
    _SPELLING[ord(_before)], _SPELLING[ord(_character)] = _before + "0", _before + "1"
_ORIGINAL = {spelling: chr(code) for code, spelling in _SPELLING.items()}
_SPELT = re.compile("|".join(re.escape(spelling) for spelling in _ORIGINAL))

_SIGNS = {"=": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_COMPARE = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge
}  # fmt: skip
_GREATEST = 10**308
"""Beyond it an integer is no float."""

_WILDCARD = re.compile(r"\*|\?|\[!?\]?[^\]]*\]", re.DOTALL)


def spelled(text: str) -> str:
    """A text as Milvus keeps it."""
    return _spelling(text.encode("utf-8", "surrogatepass"))


def text_of(spelling: str) -> str:
    """The text that ``spelled`` gave this of."""
    return _bytes(spelling).decode("utf-8", "surrogatepass")


def spelled_path(path: str) -> str:
    """The bytes of a path as Milvus keeps them. Raises ConfigError for a name that stands for no bytes."""
    try:
        return _spelling(path.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise ConfigError(f"{path!r}: a name with half a character ({error.reason}) cannot be kept") from error


def path_of(spelling: str) -> str:
    """The path that ``spelled_path`` gave this of."""
    return _bytes(spelling).decode("utf-8", "surrogateescape")


def facets(metadata: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """What of the metadata can be filtered by, by type and name."""
    found: dict[str, str | float | bool] = {}
    for name, value in metadata.items():
        if isinstance(value, bool):
            found[_facet("b", name)] = value
        elif isinstance(value, str):
            found[_facet("s", name)] = spelled(value)
        elif isinstance(value, (int, float)) and abs(value) < _GREATEST:
            found[_facet("n", name)] = _number(value)
    return found


class Filter(NamedTuple):
    """Rows that fulfil some conditions."""

    expression: str
    """What Milvus is to apply; "" is true of all rows."""
    rest: Sequence[Condition]
    """What it cannot express: of the rows that it gives, only those count that fulfil these too (``fulfils``)."""


def filter_of(conditions: Sequence[Condition]) -> Filter | None:
    """None if no row can fulfil them."""
    terms: list[str] = []
    rest: list[Condition] = []
    for condition in conditions:
        column, sign, value = condition
        kind = COLUMNS.get(column)
        spell = spelled_path if column == "path" else spelled
        term: str | None
        if sign == "glob":
            term = _like(column if kind else _field("s", column), str(value), spell)
            if "?" in str(value) or "[" in str(value):
                rest.append(condition)
        elif kind is str:
            term = f'{column} {_SIGNS[sign]} "{spell(str(value))}"'
        elif kind is int:
            term = _integer(column, sign, value)
        else:
            term = _metadata(column, sign, value)
        if term is None:
            return None
        terms.append(term)
    return Filter(" and ".join(f"({term})" for term in terms), rest)


def fulfils(row: Row, conditions: Sequence[Condition]) -> bool:
    """Whether a row fulfils conditions whose operator is "glob"."""
    for column, _, pattern in conditions:
        value = getattr(row, column) if column in COLUMNS else row.metadata.get(column)
        if not isinstance(value, str) or not glob_matches(value, str(pattern)):
            return False
    return True


def _spelling(data: bytes) -> str:
    return data.decode("latin-1").translate(_SPELLING)


def _bytes(spelling: str) -> bytes:
    return _SPELT.sub(lambda match: _ORIGINAL[match[0]], spelling).encode("latin-1")


def _number(value: float) -> float:
    """As JSON that every reader takes: an integer beyond 64 bits as a float."""
    return value if abs(value) < 2**63 else float(value)


def _facet(kind: str, name: str) -> str:
    return f"{kind}:{spelled(name)}"


def _field(kind: str, name: str) -> str:
    return f'facets["{_facet(kind, name)}"]'


def _integer(column: str, sign: str, value: str | float) -> str | None:
    """A comparison of a column of 64-bit integers, which Milvus makes with integers only."""
    assert not isinstance(value, str)  # checked_conditions
    if not abs(value) < 2**63:  # all integers of a column are on the same side of it, or of nan
        return f"{column} is not null" if _COMPARE[sign](0, value) else None
    if value == math.floor(value):
        return f"{column} {_SIGNS[sign]} {math.floor(value)}"
    if sign in ("=", "!="):
        return None if sign == "=" else f"{column} is not null"
    return f"{column} <= {math.floor(value)}" if sign in ("<", "<=") else f"{column} >= {math.ceil(value)}"


def _metadata(name: str, sign: str, value: str | float | bool) -> str | None:
    if isinstance(value, bool):
        field = _field("b", name)
        true_of = [str(one).lower() for one in (False, True) if _COMPARE[sign](one, value)]
        return " or ".join(f"{field} == {one}" for one in true_of) or None
    if isinstance(value, str):
        field, literal = _field("s", name), f'"{spelled(value)}"'
    else:
        field = _field("n", name)
        if not abs(value) < _GREATEST:  # every number is on the same side of it
            return f"{field} < 0 or {field} >= 0" if _COMPARE[sign](0, value) else None
        literal = repr(_number(value))
    if sign == "!=":  # servers differ in whether a key that is missing is another value; it is neither less nor greater
        return f"{field} < {literal} or {field} > {literal}"
    return f"{field} {_SIGNS[sign]} {literal}"


def _like(field: str, pattern: str, spell: Callable[[str], str]) -> str:
    """What is true of every text that the pattern matches, and of no other if ``*`` is its only wildcard."""
    pieces = [spell(piece) for piece in _WILDCARD.split(pattern)]
    if len(pieces) == 1:
        return f'{field} == "{pieces[0]}"'
    like = re.sub("%+", "%", "%".join(pieces))
    return f'{field} like "{like}"'
