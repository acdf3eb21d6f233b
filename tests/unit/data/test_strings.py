"""Strings come back as they went in, one by one and from a file."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from clip.data.strings import Strings

WORDS = ["", "a", "Zürich 🦉", "caf\udce9.jpg", "line\nbreak", ""]


def test_they_come_back() -> None:
    strings = Strings(iter(WORDS))
    assert list(strings) == WORDS and len(strings) == 6
    assert strings[-2] == "line\nbreak" and strings[1:3] == WORDS[1:3] and "a" in strings
    assert list(pickle.loads(pickle.dumps(strings))) == WORDS
    assert list(Strings.of_arrays(*strings.arrays())) == WORDS
    assert list(Strings()) == []
    for index in (6, -7):
        with pytest.raises(IndexError):
            strings[index]


@pytest.mark.parametrize("ends", [[], [0, 2], [1, 5], [0, 4, 3, 5], [0, 6]])
def test_bounds_that_do_not_fit(ends: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Strings.of_arrays(np.zeros(5, dtype=np.uint8), np.array(ends, dtype=np.int64))
