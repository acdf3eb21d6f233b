"""How conditions and texts are spelled for Milvus, without a server."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip.errors import ConfigError
from clip.search.milvus_expressions import facets, filter_of, fulfils, path_of, spelled, spelled_path, text_of
from clip.search.store import Condition, Row

_paths = st.binary(max_size=12).map(os.fsdecode)
_awkward = st.text(alphabet='!"#$%&[\\]^_`\t\n\x0b\x0c\r01aé日', max_size=12)


@given(_paths | _awkward)
def test_a_path_is_read_back_and_has_nothing_that_would_need_an_escape(path: str) -> None:
    spelling = spelled_path(path)
    assert path_of(spelling) == path
    assert not set(spelling) & set('"\\%_\n\r')
    spelling.encode()


@given(_paths | _awkward, _paths | _awkward)
def test_paths_compare_as_their_bytes_do_and_beginnings_stay_beginnings(first: str, second: str) -> None:
    assert (spelled_path(first) < spelled_path(second)) == (os.fsencode(first) < os.fsencode(second))
    assert spelled_path(second).startswith(spelled_path(first)) == os.fsencode(second).startswith(os.fsencode(first))


@given(st.text(st.characters(), max_size=8), st.text(st.characters(), max_size=8))
def test_texts_compare_by_code_point_halves_of_pairs_included(first: str, second: str) -> None:
    assert text_of(spelled(first)) == first
    assert (spelled(first) < spelled(second)) == (first < second)
    assert spelled(first).encode() < spelled(second).encode() or not first < second


def test_a_path_with_half_a_character_is_refused() -> None:
    with pytest.raises(ConfigError, match="half a character"):
        spelled_path("/a/\ud800.jpg")


def test_metadata_are_kept_by_type_and_what_no_condition_can_name_is_left_out() -> None:
    metadata = {"a": "x_y", "b": 1, "c": 0.5, "d": True, "e": None, "f": [1], "g": {"h": 1}, "i": 2**70, "j": 10**400}
    assert facets(metadata) == {"s:a": "x^1y", "n:b": 1, "n:c": 0.5, "b:d": True, "n:i": float(2**70)}


@pytest.mark.parametrize(
    ("condition", "expression"),
    [
        (("path", "=", 'a"b'), 'path == "a!1b"'),
        (("path", "glob", "/a_b/*.jpg"), 'path like "/a^1b/%.jpg"'),
        (("path", "glob", "/a/b.jpg"), 'path == "/a/b.jpg"'),
        (("path", "glob", "*?[a-c]*x"), 'path like "%x"'),
        (("size_bytes", "<", 5), "size_bytes < 5"),
        (("size_bytes", "<", 5.5), "size_bytes <= 5"),
        (("size_bytes", ">=", -5.5), "size_bytes >= -5"),
        (("size_bytes", "=", 5.0), "size_bytes == 5"),
        (("size_bytes", "!=", 5.5), "size_bytes is not null"),
        (("size_bytes", "<", 2**70), "size_bytes is not null"),
        (("year", "!=", 5), 'facets["n:year"] < 5 or facets["n:year"] > 5'),
        (("year", "<=", 10**400), 'facets["n:year"] < 0 or facets["n:year"] >= 0'),
        (("year", ">", 10**400), None),
        (("size_bytes", "=", 5.5), None),
        (("size_bytes", ">", 2**70), None),
        (("flag", "!=", True), 'facets["b:flag"] == false'),
        (("a b", "=", "c"), 'facets["s:a b"] == "c"'),
    ],
)
def test_a_condition_as_an_expression(condition: Any, expression: str | None) -> None:
    found = filter_of([Condition(*condition)])
    assert (found and found.expression) == (expression and f"({expression})")


def test_only_what_like_cannot_say_is_left_to_be_compared_here() -> None:
    plain, rich = Condition("path", "glob", "/a/*"), Condition("name", "glob", "[!a]?")
    found = filter_of([plain, rich])
    assert found is not None
    assert found.rest == [rich]
    assert fulfils(Row(path="p", metadata={"name": "bé"}), found.rest)
    assert not fulfils(Row(path="p", metadata={"name": "ab"}), found.rest)
    assert not fulfils(Row(path="p", metadata={"name": 5}), found.rest)
