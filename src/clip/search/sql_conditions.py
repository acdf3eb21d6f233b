"""Conditions on rows as SQL. All that comes from outside is bound, never part of the text."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from clip.errors import ConfigError
from clip.search.store import COLUMNS, Condition, checked_conditions, glob_matches

__all__ = ["SQL", "add_functions", "beginning_with", "key_of", "name_of", "path_bytes", "path_text", "where"]


class SQL(NamedTuple):
    text: str
    values: list[Any]


def where(conditions: Sequence[Condition]) -> SQL:
    """What follows WHERE in a query of ``rows``."""
    parts = [_condition(condition) for condition in checked_conditions(conditions)]
    text = " AND ".join(f"({part.text})" for part in parts) or "1"
    return SQL(text, [value for part in parts for value in part.values])


def beginning_with(prefix: bytes, *, after: bytes | None = None) -> SQL:
    """Paths that begin so, by the index of paths; those behind one of them."""
    begin = SQL("path >= ?", [prefix]) if after is None else SQL("path > ?", [after])
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return begin
    return SQL(f"{begin.text} AND path < ?", [*begin.values, stem[:-1] + bytes([stem[-1] + 1])])


def add_functions(connection: sqlite3.Connection) -> None:
    """Those that ``where`` uses."""
    connection.create_function("path_matches", 2, _path_matches, deterministic=True)
    connection.create_function("text_matches", 2, _text_matches, deterministic=True)


def path_bytes(path: str) -> bytes:
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{path!r}: a name with half a character ({error.reason}) cannot be kept") from error


def path_text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def key_of(name: str) -> str:
    """A name as it stands in the JSON: without quotes, escapes and what else SQLite's versions take differently."""
    return quote(name, safe=" ", errors="surrogatepass")


def name_of(key: str) -> str:
    return unquote(key, errors="surrogatepass")


def _condition(condition: Condition) -> SQL:
    column, operator, value = condition
    if column == "path":
        assert isinstance(value, str)
        return _path_condition(operator, value)
    if column in COLUMNS:
        kind, place, found = "1", column, []
    else:
        kind, place = f"json_type(metadata, ?) IN ({_json_types(value)})", "json_extract(metadata, ?)"
        found = [f'$."{key_of(column)}"']
    if operator == "glob":
        assert isinstance(value, str)
        return SQL(f"{kind} AND text_matches(CAST({place} AS BLOB), ?)", [*found, *found, _text_bytes(value)])
    if isinstance(value, str):
        return SQL(f"{kind} AND {place} {operator} CAST(? AS TEXT)", [*found, *found, _text_bytes(value)])
    return SQL(f"{kind} AND {place} {operator} ?", [*found, *found, _number(value)])


def _path_condition(operator: str, value: str) -> SQL:
    if operator != "glob":
        return SQL(f"path {operator} ?", [path_bytes(value)])
    literal = re.match(r"[^*?\[]*", value)
    assert literal
    within = beginning_with(path_bytes(literal[0]))
    return SQL(f"{within.text} AND path_matches(path, ?)", [*within.values, path_bytes(value)])


def _json_types(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "'true', 'false'"
    return "'text'" if isinstance(value, str) else "'integer', 'real'"


def _number(value: float) -> float:
    """What SQLite can bind: its integers have 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return value


def _text_bytes(text: str) -> bytes:
    """As SQLite has the text of a JSON string, halves of surrogate pairs included."""
    return text.encode("utf-8", "surrogatepass")


def _path_matches(path: object, pattern: bytes) -> bool:
    return isinstance(path, bytes) and glob_matches(path_text(path), path_text(pattern))


def _text_matches(text: bytes | None, pattern: bytes) -> bool:
    if text is None:
        return False
    return glob_matches(text.decode("utf-8", "surrogatepass"), pattern.decode("utf-8", "surrogatepass"))
