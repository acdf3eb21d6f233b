"""What the options that choose among pictures are understood as."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from clip.cli.conditions import conditions_of, moment, size, where
from clip.errors import ConfigError
from clip.search.store import Condition

SECOND = 10**9


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_dates_begin_here_unless_they_name_a_zone() -> None:
    midnight = 1704067200 - 9 * 3600  # 2024-01-01 in Tokyo
    for text in ("2024", "2024-01", "2024-01-01", " 2024-01-01T00:00 ", "2024-01-01 00:00:00"):
        assert moment(text) == midnight * SECOND, text
    assert moment("2024-01-01T00:00Z") == 1704067200 * SECOND
    assert moment("2024-01-01T00:00+09:00") == midnight * SECOND
    assert moment("2024-01-01T00:00:00.25") == midnight * SECOND + SECOND // 4
    assert moment("1969-12-31T23:59:59+00:00") == -SECOND
    assert moment("9999") == 2**63 - 1


@pytest.mark.parametrize(
    "text", ["", "yesterday", "24", "2024-13", "2024-02-30", "2024T10:00", "2024-5-1", "2024-01-01T"]
)
def test_what_is_no_date(text: str) -> None:
    with pytest.raises(ValueError, match="is no date"):
        moment(text)


def test_sizes() -> None:
    sizes = {"0": 0, "1500": 1500, "12 bytes": 12, "10KB": 10_000, "10k": 10_000, "10 KiB": 10_240, "1.5M": 1_500_000}
    sizes |= {"10.3KB": 10_300, "2TB": 2 * 10**12, "1GiB": 1 << 30, "99999999999tb": 2**63 - 1}
    assert {text: size(text) for text in sizes} == sizes
    for text in ("", "KB", "-3", "1e3", "1,5MB", "10XB", "5 i"):
        with pytest.raises(ValueError, match="is no size"):
            size(text)


def test_conditions_in_words() -> None:
    expected = {
        "width>=1000": ("width", ">=", 1000),
        " width < 2.5 ": ("width", "<", 2.5),
        "label = cat": ("label", "=", "cat"),
        "label==cat": ("label", "=", "cat"),
        "a b != c d": ("a b", "!=", "c d"),
        "is_good=true": ("is_good", "=", True),
        'label="3"': ("label", "=", "3"),
        'label=""': ("label", "=", ""),
        "caption = 1 > 0": ("caption", "=", "1 > 0"),
        "path glob */a b/*": ("path", "glob", "*/a b/*"),
        "global=1": ("global", "=", 1),
        "n=NaN": ("n", "=", "NaN"),
        "n=null": ("n", "=", "null"),
        "n=[1]": ("n", "=", "[1]"),
        "n=-9223372036854775808": ("n", "=", -(2**63)),
    }
    assert {text: where(text)[:3] for text in expected} == expected
    assert type(where("is_good=true").value) is bool
    for text in ("", "width", "width=", "=3", "path glob", "width ~ 3"):
        with pytest.raises(ValueError, match="is no condition"):
            where(text)
    with pytest.raises(ValueError, match="more than 64 bits"):
        where("n=9223372036854775808")


def _conditions(**given: object) -> list[Condition]:
    nothing = {"path": None, "after": None, "before": None, "min_size": None, "max_size": None, "where": ()}
    return list(conditions_of(**{**nothing, **given}))  # type: ignore[arg-type]


def test_options_become_conditions() -> None:
    assert _conditions() == []
    assert _conditions(path="*/a/*", after=5, before=9, min_size=0, max_size=7) == [
        Condition("path", "glob", "*/a/*"),
        Condition("modified_ns", ">=", 5),
        Condition("modified_ns", "<", 9),
        Condition("size_bytes", ">=", 0),
        Condition("size_bytes", "<=", 7),
    ]


def test_text_columns_are_compared_with_text() -> None:
    given = tuple(map(where, ("format=1", "path glob 2024*", "year glob 20*", "caption glob 7", "year=2024")))
    assert [condition.value for condition in _conditions(where=given)] == ["1", "2024*", "20*", "7", 2024]
    with pytest.raises(ConfigError, match="width is a number"):
        _conditions(where=(where("width=wide"),))
    with pytest.raises(ConfigError, match="a number"):
        _conditions(where=(where("width glob 3*"),))
