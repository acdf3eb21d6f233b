"""The language of queries: what is understood, what is refused and where, and that nothing else can happen."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clip.errors import ClipError, ConfigError, ShapeError
from clip.search.query import MAXIMUM_LENGTH, MAXIMUM_NESTING, MAXIMUM_TERMS, All, Any, Query, Term, parse

A, B, C, D = (Term(letter) for letter in "abcd")


def rows(values: list[list[int]]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a dog on a beach at sunset", Term("a dog on a beach at sunset")),
        ("a  dog\n\ton a beach ", Term("a dog on a beach")),
        ("a and b or not c", Term("a and b or not c")),
        ("AND1 ANDY", Term("AND1 ANDY")),
        ("a AND b", All((A, B))),
        ("a OR b", Any((A, B))),
        ("a AND b OR c AND d", Any((All((A, B)), All((C, D))))),
        ("a AND (b OR c) AND d", All((A, Any((B, C)), D))),
        ("a AND b NOT c", All((A, B), (C,))),
        ("a AND b AND NOT c", All((A, B), (C,))),
        ("NOT c AND a b", All((Term("a b"),), (C,))),
        ("a NOT (b AND c)", All((A,), (All((B, C)),))),
        ("a NOT b OR c", Any((All((A,), (B,)), C))),
        ("dog NOT person wearing a hat", All((Term("dog"),), (Term("person wearing a hat"),))),
        ('"a" b', All((A, B))),
        ("a (b) c", All((A, B, C))),
        ('"red car"^2', Term("red car", weight=2.0)),
        ("red car^0.5 OR b", Any((Term("red car", weight=0.5), B))),
        ("a^.25", Term("a", weight=0.25)),
        ('"AND (b)^2 \\"c\\" \\\\"', Term('AND (b)^2 "c" \\')),
        ('5" pipe C++ c+d x"y"', Term('5" pipe C++ c+d x"y"')),
        ("rock'n'roll -word a-b *?:~", Term("rock'n'roll -word a-b *?:~")),
        ("+photo.jpg", Term("photo.jpg", is_image=True)),
        ("+photo(1).jpg^3", Term("photo(1).jpg", is_image=True, weight=3.0)),
        ("(+photo(1).jpg OR a)", Any((Term("photo(1).jpg", is_image=True), A))),
        ('+"my photo.jpg" at night', All((Term("my photo.jpg", is_image=True), Term("at night")))),
        ("a NOT +b.jpg", All((A,), (Term("b.jpg", is_image=True),))),
        ("ein Hund 犬 🐶\u2003собака", Term("ein Hund 犬 🐶 собака")),
    ],
)
def test_is_understood(text: str, tree: Term | All | Any) -> None:
    query = parse(text)
    assert query.tree == tree
    assert parse(str(query)) == query


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("((a))", "a"),
        ("a AND (b AND c)", "a AND b AND c"),
        ("a OR (b OR c)", "a OR b OR c"),
        ("(a NOT c) AND b", "a AND b NOT c"),
        ("a NOT (b OR c)", "a NOT b NOT c"),
    ],
)
def test_parentheses_that_change_nothing(one: str, other: str) -> None:
    assert parse(one) == parse(other)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("dog AND", 8, "found the end"),
        ("AND dog", 1, "found AND"),
        ("dog AND OR cat", 9, "found OR"),
        ("a NOT NOT b", 7, "found NOT"),
        ("()", 2, "found )"),
        ("dog AND (cat OR bird", 9, '"(" without ")"'),
        ("dog) cat", 4, '")" without "("'),
        ('dog "red car', 5, "not closed"),
        ('"a\\', 1, "not closed"),
        ('dog " "', 5, "nothing in these quotes"),
        ("a + b", 3, "a picture must follow +"),
        ("+^2", 1, "a picture must follow +"),
        ('+" "', 1, "nothing in these quotes"),
        ("+a\0b.jpg", 1, "not the name of a picture"),
        ("NOT person", 1, "only exclusions"),
        ("dog OR NOT person", 8, "only exclusions"),
        ("dog AND (NOT cat)", 10, "only exclusions"),
        ("dog NOT (beach NOT person)", 5, "an exclusion of an exclusion"),
        ("^2", 1, "found ^"),
        ("dog ^2", 5, "directly behind the term"),
        ("dog^", 4, "is no weight"),
        ("dog^big", 4, "is no weight"),
        ("dog^-1", 4, "is no weight"),
        ("dog^0", 4, "from 0.01 to 100"),
        ("dog^101", 4, "from 0.01 to 100"),
        ("dog^1e1", 4, "is no weight"),
        ("dog^nan", 4, "is no weight"),
        ("dog^٢", 4, "is no weight"),
        ("dog^2^3", 6, "found ^"),
        ("(dog OR cat)^2", 13, "a weight belongs to a term"),
    ],
)
def test_says_where_and_why_a_query_is_refused(text: str, column: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parse(text)
    assert f"column {column}:" in str(caught.value)


def test_an_empty_query_is_refused() -> None:
    for text in ("", " \n"):
        with pytest.raises(ConfigError, match="the query is empty"):
            parse(text)


def test_hostile_lengths() -> None:
    with pytest.raises(ConfigError, match="10,001 characters"):
        parse("a" * (MAXIMUM_LENGTH + 1))
    assert len(parse(" OR ".join(["a"] * MAXIMUM_TERMS)).terms) == MAXIMUM_TERMS
    with pytest.raises(ConfigError, match=f"more than {MAXIMUM_TERMS} terms"):
        parse(" OR ".join(["a"] * (MAXIMUM_TERMS + 1)))
    with pytest.raises(ConfigError, match=f"{MAXIMUM_TERMS + 1} terms"):
        parse("a", images=["b.jpg"] * MAXIMUM_TERMS)
    assert parse("(" * MAXIMUM_NESTING + "a" + ")" * MAXIMUM_NESTING) == Query(A)
    with pytest.raises(ConfigError, match=f"more than {MAXIMUM_NESTING} parentheses"):
        parse("(" * 4000 + "a" + ")" * 4000)
    for text in ('"' * 9999, "+" * 9999, "^" * 9999, " " * 9999 + "^", '"' + "\\a" * 4999, "\\" * 9999 + "^"):
        with pytest.raises(ConfigError):
            parse(text)


class TestPicturesThatAreGiven:
    def test_belong_to_the_query(self) -> None:
        given_ = Term("x.jpg", is_image=True)
        assert parse("", images=["x.jpg"]).tree == given_
        assert parse("a OR b", images=["x.jpg"]).tree == All((Any((A, B)), given_))
        assert parse("a NOT b", images=["x.jpg"]).tree == All((A, given_), (B,))

    def test_come_after_those_of_the_text(self) -> None:
        query = parse("a AND +1.jpg NOT +2.jpg", images=["3.jpg", "4.jpg"])
        assert query.images == ("1.jpg", "2.jpg", "3.jpg", "4.jpg")
        assert [term.text for term in query.terms] == ["a", "1.jpg", "3.jpg", "4.jpg", "2.jpg"]
        embeddings = query.arranged(rows([[0]]), rows([[1], [2], [3], [4]]))
        assert embeddings.ravel().tolist() == [0, 1, 3, 4, 2]

    def test_need_a_name(self) -> None:
        with pytest.raises(ConfigError, match="not the name of a picture"):
            parse("a", images=[""])


class TestTerms:
    def test_are_in_the_order_of_the_tree(self) -> None:
        query = parse("a NOT b AND (c OR +d)")
        assert [term.text for term in query.terms] == ["a", "c", "d", "b"]
        assert query.is_negated == (False, False, False, True)
        assert query.texts == ("a", "c", "b")
        assert query.images == ("d",)

    def test_are_put_in_order(self) -> None:
        query = parse("+1 AND a NOT +2")
        assert query.arranged(rows([[9]]), rows([[1], [2]])).tolist() == [[1], [9], [2]]
        assert parse("a").arranged(rows([[9, 8]]), np.empty((0, 2), np.float32)).tolist() == [[9, 8]]
        assert parse("+a").arranged(np.empty((0, 2), np.float32), rows([[9, 8]])).tolist() == [[9, 8]]

    def test_need_an_embedding_each(self) -> None:
        with pytest.raises(ShapeError, match="1 texts and 1 images; there are embeddings of 2 and 0"):
            parse("a +b").arranged(np.ones((2, 4), np.float32), np.empty((0, 4), np.float32))


_PIECES = st.sampled_from(
    ["AND", "OR", "NOT", "(", ")", '"', "^", "^2", "^0.5", "+", "\\", " ", "\t", "a", "dog", "+a.jpg", '"b c"', "\0"]
)


@given(st.one_of(st.text(), st.lists(_PIECES).map("".join), st.lists(_PIECES).map(" ".join)))
def test_any_text_is_a_query_or_refused(text: str) -> None:
    try:
        query = parse(text)
    except ClipError:
        return
    assert parse(str(query)) == query
    assert not all(query.is_negated)


_WORDS = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() == text and "\0" not in text)
_LEAVES = st.builds(Term, _WORDS, st.booleans(), st.integers(1, 10_000).map(lambda n: n / 100))


def _trees(positive_only: bool) -> st.SearchStrategy[Term | All | Any]:
    def extended(children: st.SearchStrategy[Term | All | Any]) -> st.SearchStrategy[Term | All | Any]:
        parts = st.lists(children, min_size=2, max_size=3).map(tuple)
        nothing = st.just(())
        without = nothing if positive_only else st.lists(_trees(True), max_size=2).map(tuple)
        return st.one_of(st.builds(All, parts, without), st.builds(Any, parts))

    return st.recursive(_LEAVES, extended, max_leaves=6)


@given(_trees(positive_only=False))
def test_what_is_written_is_read_as_the_same(tree: Term | All | Any) -> None:
    query = parse(str(tree))  # as flat as it can be; written and read again it does not change
    assert parse(str(query)) == query
    assert sorted(map(str, query.terms)) == sorted(map(str, Query(tree).terms))
    assert sum(query.is_negated) == sum(Query(tree).is_negated)
