"""Articles, templates, and the files that hold names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip.errors import ConfigError, DataError
from clip.prompts import (
    BACKGROUND,
    DEFAULT_TEMPLATES,
    checked_classes,
    checked_templates,
    fill,
    parse_names,
    read_names,
    read_templates,
    with_article,
)


@pytest.mark.parametrize(
    "phrase",
    [
        *("a cat", "an owl", "an apple", "an hour", "an honest man", "an heirloom", "an X-ray", "an umbrella"),
        *("a unicorn", "a uniform", "an uninvited guest", "a European owl", "a ewe", "a one-way street", "an onion"),
        *("a UFO", "a US flag", "a user", "a utensil", "an usher", "a UK map", "a ukulele", "a house", "a 3D printer"),
    ],
)
def test_the_article_follows_the_sound(phrase: str) -> None:
    assert with_article(phrase.split(" ", 1)[1]) == phrase


@pytest.mark.parametrize("name", ["the Eiffel Tower", "a dog", "An owl"])
def test_a_name_with_an_article_gets_no_other(name: str) -> None:
    assert with_article(name) == name


def test_templates_are_filled_everywhere_and_verbatim() -> None:
    assert fill("a photo of a {}", "owl") == "a photo of a owl"  # as in published lists of templates
    assert fill("a photo of a(n) {}", "owl") == "a photo of an owl"
    assert fill("{}, a kind of {}", "owl") == "owl, a kind of owl"
    assert fill("a(n) {}", "odd {} name") == "an odd {} name"
    assert fill("{}", "C:\\temp \\1") == "C:\\temp \\1"
    with pytest.raises(ConfigError, match=r"'a photo of \{0\}' has no \{\}"):
        fill("a photo of {0}", "owl")


def test_our_own_prompts_are_valid() -> None:
    assert checked_templates(DEFAULT_TEMPLATES) == DEFAULT_TEMPLATES
    assert len(set(BACKGROUND)) == len(BACKGROUND)


@pytest.mark.parametrize("templates", [[], (), "a {}", ["a {}", "a"]])
def test_bad_templates(templates: list[str]) -> None:
    with pytest.raises(ConfigError, match="template"):
        checked_templates(templates)


def test_classes_and_their_synonyms() -> None:
    assert checked_classes(["cat", ["sofa", "couch"]]) == [("cat",), ("sofa", "couch")]
    assert checked_classes(["cat"], BACKGROUND) == [("cat",)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one name"),
        ("cat", "at least one name"),
        (["cat"], "only class"),
        (["cat", ""], "class 2 of 2"),
        (["cat", "  "], "class 2 of 2"),
        (["cat", []], "class 2 of 2"),
        (["cat", "dog", "Cat"], "'Cat' names class 1 and class 3"),
        (["hot dog", "hot  dog"], "names class 1 and class 2"),
        ([["sofa", "couch"], "couch"], "'couch' names class 1 and class 2"),
    ],
)
def test_bad_class_names(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_classes(names)


@pytest.mark.parametrize("background", ["something", ["something", " "]])
def test_bad_background(background: list[str]) -> None:
    with pytest.raises(ConfigError, match="background"):
        checked_classes(["cat", "dog"], background)


def test_names_between_commas() -> None:
    assert parse_names(' cat, "dog, big",  bird ') == ["cat", "dog, big", "bird"]
    assert parse_names('"a ""good"" dog",owl') == ['a "good" dog', "owl"]
    assert parse_names("") == []
    assert parse_names("cat,,owl") == ["cat", "", "owl"]  # told as an empty name later, not dropped
    with pytest.raises(ConfigError, match="quote as in CSV"):
        parse_names('"cat')


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"cat\ndog\n", ["cat", "dog"]),
        (b"\xef\xbb\xbf# animals\r\n cat \r\n\r\nsnow leopard", ["cat", "snow leopard"]),
        ("Eule\nKäuzchen\n".encode(), ["Eule", "Käuzchen"]),
        (b'\xef\xbb\xbf ["cat", ["sofa", "couch"]]', ["cat", ["sofa", "couch"]]),
    ],
)
def test_files_of_names(tmp_path: Path, content: bytes, names: list[str]) -> None:
    path = tmp_path / "names"
    path.write_bytes(content)
    assert read_names(path) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no line with text"),
        (b"# only this\n", "no line with text"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b'["cat"', "JSON"),
        (b"[]", "empty"),
        (b'["cat", 3]', "item 1 is 3"),
        (b'["cat", []]', "item 1"),
        (b'["cat", ["a", 1]]', "item 1"),
    ],
)
def test_bad_files_of_names(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "names"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_names(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_names(tmp_path / "gone")


def test_files_of_templates(tmp_path: Path) -> None:
    path = tmp_path / "templates"
    path.write_text("# ours\na {}\nthe {}\n")
    assert read_templates(path) == ["a {}", "the {}"]
    path.write_text("a {}\nthe\n")
    with pytest.raises(DataError, match=r"template 2, 'the'"):
        read_templates(path)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n")), min_size=1))
def test_any_names_survive_quoting_as_csv(names: list[str]) -> None:
    line = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    assert parse_names(line) == [name.strip() for name in names]
