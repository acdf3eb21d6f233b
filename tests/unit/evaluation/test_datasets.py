"""Sources → embeddings and labels: nothing is shifted by what cannot be read, and names meet their pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from clip.errors import ConfigError, DataError
from clip.evaluation.datasets import EmbeddedSource, embed_source, labelled

Make = Callable[..., Any]
RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def embedded(names: tuple[str, ...], labels: list[int] | None, captions: list[tuple[str, ...]]) -> EmbeddedSource:
    return EmbeddedSource(
        name="data",
        keys=tuple(map(str, range(len(captions)))),
        rows=torch.arange(len(captions)),
        embeddings=torch.eye(len(captions)),
        captions=tuple(captions),
        labels=None if labels is None else torch.tensor(labels),
        class_names=names,
        failures=(),
    )


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_bad_record_shifts_no_other(colours: Any, plain: Any, pictures: Make, sample: Make, batch_size: int) -> None:
    records = [
        sample("a", RED, label=0),
        "row 1 is torn",
        sample("c", b"no picture", label=1),
        sample("d", GREEN, label=1),
        sample("e", BLUE, label=2),
        "row 5 is torn",
        sample("g", RED, label=0),
    ]
    done: list[int] = []
    source = pictures(records, class_names=("red", "green", "blue"))
    data = embed_source(colours, plain, source, batch_size=batch_size, advance=done.append)
    assert (data.keys, data.rows.tolist()) == (("a", "d", "e", "g"), [0, 3, 4, 6])
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 0]
    assert data.embeddings.argmax(dim=1).tolist() == [0, 1, 2, 0]
    assert [(item.row, item.key) for item in data.failures] == [(1, "record 1"), (2, "c"), (5, "record 5")]
    assert data.failures[0].reason == "row 1 is torn"
    assert sum(done) == 7


def test_a_limit_takes_records_from_all_over(colours: Any, plain: Any, pictures: Make, sample: Make) -> None:
    source = pictures([sample(str(i), RED) for i in range(10)])
    for limit, rows in ((3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10))), (1, [0])):
        assert embed_source(colours, plain, source, limit=limit).rows.tolist() == rows
    with pytest.raises(ConfigError, match="limit is 0"):
        embed_source(colours, plain, source, limit=0)


def test_a_source_without_pictures_is_an_error(colours: Any, plain: Any, pictures: Make, sample: Make) -> None:
    with pytest.raises(DataError, match="no records"):
        embed_source(colours, plain, pictures([]))
    with pytest.raises(DataError, match="none of 2 pictures can be read; the first: torn"):
        embed_source(colours, plain, pictures(["torn", sample("b", b"no picture")]))
    with pytest.raises(DataError, match="b has no label"):
        embed_source(colours, plain, pictures([sample("a", RED, label=0), sample("b", RED)], class_names=("x", "y")))


def test_a_source_with_classes_speaks_for_itself() -> None:
    classes = labelled(embedded(("cat", "dog", "owl"), [2, 0], [("a cat",), ("b",)]))
    assert (classes.names, classes.labels.tolist()) == (("cat", "dog", "owl"), [2, 0])


def test_captions_are_classes_whatever_their_case_and_spaces() -> None:
    classes = labelled(embedded((), None, [("Owl",), ("cat",), ("owl ", "a bird"), ("CAT",)]))
    assert (classes.names, classes.labels.tolist()) == (("cat", "Owl"), [1, 0, 1, 0])


def test_names_of_a_file_are_found_by_name_and_others_compete() -> None:
    given = ["dog", ["kitten", "Cat"], "owl", "wolf"]
    for data in (embedded((), None, [("owl",), ("cat",)]), embedded(("owl", "cat"), [0, 1], [("x",), ("y",)])):
        classes = labelled(data, given)
        assert classes.names == ("dog", "kitten", "owl", "wolf")
        assert classes.synonyms[1] == ("kitten", "Cat")
        assert classes.labels.tolist() == [2, 1]


def test_names_of_a_file_may_replace_codes_one_by_one() -> None:
    data = embedded(("n01440764", "n01443537"), [1, 0], [("x",), ("y",)])
    classes = labelled(data, ["tench", "goldfish"])
    assert (classes.names, classes.labels.tolist()) == (("tench", "goldfish"), [1, 0])
    with pytest.raises(DataError, match="2 of 2 classes are not among the 3 class names, such as 'n01440764'"):
        labelled(data, ["tench", "goldfish", "shark"])


def test_a_misspelt_name_among_right_ones_is_no_replacement() -> None:
    with pytest.raises(DataError, match=r"1 of 2 classes .* such as 'kat' \(there are cat"):
        labelled(embedded(("kat", "dog"), [0, 1], [("x",), ("y",)]), ["dog", "cat"])
    with pytest.raises(DataError, match="such as 'bird'"):
        labelled(embedded((), None, [("bird",), ("cat",)]), ["dog", "cow"])
