"""The text of a YAML file → a tree of plain texts, lists and mappings, each with its line.

A small part of YAML: nothing is constructed, so that ``no`` is the word that was written and no tag can run code; what
lets a short file stand for a long or an endless one (anchors, aliases, merge keys) is refused, as are keys that are
there twice, of which other readers silently take the last. A file is bounded in bytes and in depth.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator

import yaml
from yaml.reader import Reader

from clip.errors import ConfigError

__all__ = ["DEEPEST", "LARGEST", "Fault", "Listing", "Mapping", "Node", "Text", "YamlError", "read_tree"]

LARGEST = 1_000_000
"""Bytes of a file. PyYAML reads about 100 kB a second."""

DEEPEST = 10
"""Lists and mappings inside one another; a policy has five."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Fault:
    """What is wrong, and where."""

    line: int
    """From 1."""
    message: str


class YamlError(ConfigError):
    """A text that is no YAML, or no YAML that is taken."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.fault = Fault(line, message)


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A word, a number, a sentence: as it was written, without quotes."""

    text: str
    line: int
    is_quoted: bool = False
    """In quotes, or as a block after ``|`` or ``>``: a text for certain, where plain letters may mean a number."""


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    items: tuple[Node, ...]
    line: int


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    pairs: tuple[tuple[Text, Node], ...]
    """In their order; no key is there twice."""
    line: int


Node = Text | Listing | Mapping


def read_tree(data: bytes) -> Node:
    """The tree of one document; a Text that is empty for an empty file. Raises YamlError, and nothing else."""
    text = _decoded(data)
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    try:
        return _document(events)
    except yaml.MarkedYAMLError as error:
        raise _begun_before(text, error) or _translated(error) from error


def _decoded(data: bytes) -> str:
    if len(data) > LARGEST:
        raise YamlError(1, f"the file has more than {LARGEST:,} bytes, which is the limit; divide it")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise YamlError(1, "the file is UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _lines_before(data[: error.start].decode("utf-8", "replace"))
        raise YamlError(line, f"byte {error.start} is not UTF-8; save the file as UTF-8") from error
    # The last three end a line in YAML and in no editor: all lines after them would be counted differently.
    if found := re.search(f"{Reader.NON_PRINTABLE.pattern}|[\x85\u2028\u2029\ufeff]", text):
        character = f"U+{ord(found[0]):04X}"
        raise YamlError(_lines_before(text[: found.start()]), f"has the control character {character}; remove it")
    return text


def _lines_before(text: str) -> int:
    """The number of the line that begins where ``text`` ends, or goes on."""
    return len(re.findall(r"\r\n|\r|\n", text)) + 1


# Events → the tree ----------------------------------------------------------------------------------------------------


def _document(events: Iterator[yaml.Event]) -> Node:
    next(events)  # the stream begins
    if isinstance(next(events), yaml.StreamEndEvent):
        return Text("", 1)
    tree = _node(next(events), events, depth=0)
    next(events)  # the document ends
    after = next(events)
    if not isinstance(after, yaml.StreamEndEvent):
        raise YamlError(_line(after), "a second document begins here; write one to a file")
    return tree


def _node(event: yaml.Event, events: Iterator[yaml.Event], *, depth: int) -> Node:
    line = _line(event)
    if isinstance(event, yaml.AliasEvent):
        raise YamlError(line, f"the alias *{event.anchor} is not taken; write out what it stands for")
    if anchor := getattr(event, "anchor", None):
        raise YamlError(line, f"the anchor &{anchor} is not taken; remove it, and write things out where they are used")
    if tag := getattr(event, "tag", None):
        raise YamlError(line, f"the tag {tag} is not taken; write the value without it")
    if isinstance(event, yaml.ScalarEvent):
        return Text(event.value, line, is_quoted=event.style is not None)
    if depth == DEEPEST:
        raise YamlError(line, f"more than {DEEPEST} lists and mappings inside one another; a policy has five at most")
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Node] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(event, events, depth=depth + 1))
        return Listing(tuple(items), line)
    return Mapping(_pairs(events, depth), line)


def _pairs(events: Iterator[yaml.Event], depth: int) -> tuple[tuple[Text, Node], ...]:
    pairs: dict[str, tuple[Text, Node]] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _node(event, events, depth=depth + 1)
        if not isinstance(key, Text):
            raise YamlError(key.line, "a list or a mapping stands where a key is expected; quote it if it is text")
        if key.text == "<<" and not key.is_quoted:
            raise YamlError(key.line, "the merge key << is not taken; write the keys out")
        if key.text in pairs:
            first = pairs[key.text][0].line
            raise YamlError(key.line, f"the key {key.text!r} is here twice, first on line {first}; remove one")
        pairs[key.text] = (key, _node(next(events), events, depth=depth + 1))
    return tuple(pairs.values())


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


# Errors of the parser, in plain words, and where they began -----------------------------------------------------------

_REASONS: tuple[tuple[str, bool, str], ...] = (
    ("found character '\\t'", False, "a tab stands where spaces are needed; indent with spaces"),
    ("expected a comment or a line break, but found '\\t'", False, "a tab stands where spaces are needed; remove it"),
    ("found unexpected end of stream", True, "a quote that begins here is never closed; close it"),
    ("found unexpected document separator", True, "a quote that begins here is not closed before ---; close it"),
    ("expected ',' or ']'", True, "the list that begins here with [ is not closed, or lacks a comma; write [a, b]"),
    ("expected ',' or '}'", True, "the mapping that begins here with { is not closed, or lacks a comma; write {a: b}"),
    ("could not find expected ':'", True, "no colon follows what stands here, or its text is not closed"),
    ("mapping values are not allowed", False, "a colon inside a text, or a key that is indented too far; quote a text "
     "with a colon, and give keys of one mapping the same indentation"),
    ("expected <block end>", False, "this is not indented like the lines that it belongs to, or a text is "
     "followed by more on its line; give the lines the same indentation, and quote the whole text"),
    ("sequence entries are not allowed", False, "a list begins in the middle of a line; begin it on a line of its own"),
    ("found unknown escape character", False, "a backslash in double quotes begins an escape that does not exist; "
     "write two, or use single quotes"),
    ("expected escape sequence", False, "an escape in double quotes has too few digits; write two backslashes, or use "
     "single quotes"),
    ("found undefined tag handle", False, "a text begins with !, which makes it a tag; quote it"),
)  # fmt: skip
"""How PyYAML's words begin; whether the fault is where a construct began, or where it was noticed; our words."""


def _begun_before(text: str, error: yaml.MarkedYAMLError) -> YamlError | None:
    """The fault behind an error that was noticed lines later, because a text went on over the lines between; or None.

    It is a quote that is missing, and ends with the next one in the file; or a key without its colon, which the next
    line continues.
    """
    noticed = error.problem_mark
    if noticed is None:
        return None
    tokens = [yaml.Token(noticed, noticed), *_tokens_until(text, noticed.line)]
    for before, token in reversed(list(itertools.pairwise(tokens))):
        if not isinstance(token, yaml.ScalarToken) or not token.start_mark.line < token.end_mark.line == noticed.line:
            continue
        begun, line = token.start_mark.line + 1, noticed.line + 1
        if token.style in ("'", '"'):
            return YamlError(begun, f"a quote that begins here ends on line {line}, where more follows; close it")
        is_value = isinstance(before, yaml.ValueToken) and before.start_mark.line == token.start_mark.line
        if (error.problem or "").startswith("mapping values") and not is_value:
            return YamlError(
                begun,
                f"no colon follows this text, and line {line} continues it; add the colon, or indent line {line} less",
            )
    return None


def _tokens_until(text: str, line: int) -> list[yaml.Token]:
    """Those that begin up to a line; all that there are before an error of the scanner."""
    loader = yaml.SafeLoader(text)
    tokens: list[yaml.Token] = []
    try:
        while loader.check_token():
            tokens.append(loader.get_token())  # type: ignore[no-untyped-call]  # its stubs give it no type
            if tokens[-1].start_mark.line > line:
                break
    except yaml.YAMLError:
        tokens += loader.tokens  # found, and not given out yet
    return tokens


def _translated(error: yaml.MarkedYAMLError) -> YamlError:
    problem = error.problem or str(error)
    begun, noticed = error.context_mark, error.problem_mark
    for beginning, is_begun, reason in _REASONS:
        if problem.startswith(beginning):
            mark = begun if is_begun and begun is not None else noticed
            return YamlError(mark.line + 1 if mark else 1, reason)
    if found := re.match(r"found character ['\"](.)['\"] that cannot start any token", problem):
        message = f"a text cannot begin with {found[1]} unless it is quoted; quote it"
    else:
        message = f"is no YAML: {problem}" + (f" ({error.context})" if error.context else "")
    return YamlError(noticed.line + 1 if noticed else 1, message)
