"""Policies that are wrong: each of hundreds of ways to break a good one is told with its file, its line and the reason.

The good one is broken in one place at a time, so that the line is known. Bytes that are changed at random give a policy
or the same kind of error, and never another.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from clip.errors import ConfigError
from clip.moderation.policy import Policy
from clip.moderation.policy_file import packaged_policies, policy_text, read_policy

GOOD = """\
# A good policy.
policy: good
version: 1
description: All that a policy can say.
templates: ["{}", "a photo of {}"]
background:
  - a dog
  - a cat
unreadable: block
categories:
  weapons:
    description: Guns, and swords.
    prompts:
      - a pistol
      - a sword
    counter-prompts:
      - a water pistol
      - scissors
    examples:
      - gun.png
    counter-examples: water.png
    threshold: 0.5
    action: block
    severity: high
    exceptions:
      - prompts: a museum
        action: flag
      - path: "*/museum/*"
        action: allow
      - sha256: 00000000000000000000000000000000000000000000000000000000000000ff
        action: flag
  alcohol:
    description: Drinks.
    prompts: a glass of wine
    target:
      recall: 0.9
    action: flag
    severity: low
"""
LINES = GOOD.splitlines()


class Case(NamedTuple):
    """A broken file, and one fault that must be told."""

    kind: str
    text: bytes
    line: int
    reason: str
    """Pattern of the message."""


def broken(kind: str, line: int, new: str | bytes, reason: str, *, told: int | None = None) -> Case:
    """GOOD with another line. told: the line that the error names, if it is not this one."""
    lines = [text.encode() for text in LINES]
    lines[line - 1] = new.encode() if isinstance(new, str) else new
    return Case(kind, b"\n".join(lines) + b"\n", told or line, reason)


def indent_of(text: str) -> str:
    return text[: len(text) - len(text.lstrip(" "))]


def key_lines() -> Iterator[tuple[int, str, str, str]]:
    """Number, what stands before the key, the key, and what follows the colon."""
    for number, text in enumerate(LINES, start=1):
        if found := re.fullmatch(r"((?: *(?:- )?))([a-z0-9-]+):(.*)", text):
            yield number, found[1], found[2], found[3]


def item_lines() -> Iterator[tuple[int, str, str]]:
    for number, text in enumerate(LINES, start=1):
        if found := re.fullmatch(r"( *- )([^:]+)", text):
            yield number, found[1], found[2]


def line_of(text: str, nth: int = 0) -> int:
    return [number for number, line in enumerate(LINES, start=1) if line.strip() == text][nth]


NAMES_OF_CATEGORIES = ("weapons", "alcohol")

NO_NUMBERS = {
    "1.2": "is 1.2; it must be above 0 and below 1",
    "0": "is 0; it must be above 0 and below 1",
    "1": "is 1; it must be above 0",
    "-0.5": "is -0.5; it must be",
    "95": r"is 95; .* \(for 95 %, write 0.95\)",
    "1e999": "is inf; it must be",
    "nan": "is 'nan'; a number is expected",
    ".inf": "is '.inf'; a number is expected",
    "0x1": "is '0x1'; a number is expected",
    "1_0": "is '1_0'; a number is expected",
    "80%": "is '80%'; for a percentage write 0.8",
    '"0.8"': "is '0.8'; write the number without quotes: 0.8",
    "0,8": "is '0,8'; write a point for the comma: 0.8",
    "high": "is 'high'; a number is expected",
    "true": "is 'true'; a number is expected",
    "[0.8]": "is a list, and a text is expected",
    "{a: 0.8}": "is a mapping, and a text is expected",
    "": "is empty; give it a value, or remove it",
    "~": "is empty; give it a value",
    "null": "is empty; .* write 'null' in quotes if the word is meant",
    '""': "is empty",
    "0.5 0.6": "is '0.5 0.6'; a number is expected",
}
NO_WORDS = {
    "off": "is 'off'; it must be one of",
    "no": "is 'no'; it must be one of",
    "Block": "is 'Block'; it must be one of (block|low)",
    "hihg": "is 'hihg'; it must be one of",
    "1": "is '1'; it must be one of",
    "": "is empty",
    "~": "is empty",
    "[block]": "is a list, and a text is expected",
    "{block: 1}": "is a mapping, and a text is expected",
    '"block high"': "is 'block high'; it must be one of",
}
NO_TEXTS = {
    "": "is empty",
    "~": "is empty",
    "null": "is empty; .* in quotes if the word is meant",
    '"   "': "is empty",
    "[]": "is an empty list|is a list, and a text is expected",
    "[[a]]": "is a list, and a text is expected",
    "{a: b}": "is a mapping, and a text is expected; quote it if its colon",
    "{}": "is a mapping, and a text is expected",
    "'...'": "has no word|is no file",
    '"a\\x07b"': r"has the character '\\x07'|is no file",
    '"a\\u202eb"': r"has the character '\\u202e'|is no file",
    "word " * 90: "has 9\\d tokens.*the context of a text tower is 77; shorten it|is no file",
    "x" * 2001: "has 2,001 characters; the limit is 2,000",
}
NO_YAML = {
    "*other": r"the alias \*other is not taken",
    "&name text": "the anchor &name is not taken",
    "!!str text": "the tag tag:yaml.org,2002:str is not taken",
    "!!python/object/apply:os.system [ls]": "the tag tag:yaml.org,2002:python/object/apply:os.system is not taken",
    "!local text": "the tag !local is not taken",
    "!e!tag text": "a text begins with !",
    "@text": "cannot begin with @ unless it is quoted",
    "`text`": "cannot begin with ` unless it is quoted",
    "%text": "cannot begin with % unless it is quoted",
    '"never closed': "a quote that begins here (is never closed|ends on line)",
    "'never closed": "a quote that begins here is never closed",
    "[never, closed": "begins here with \\[ is not closed",
    "{never: closed": "begins here with { is not closed",
    '"\\q"': "an escape that does not exist",
    '"\\x1"': "an escape in double quotes has too few digits",
    "a: b: c": "a colon inside a text|is a mapping",
    '"a" b': "followed by more on its line",
    "\ta": "a tab stands where spaces are needed",
}


def cases() -> Iterator[Case]:
    for number, before, key, after in key_lines():
        if key not in NAMES_OF_CATEGORIES:
            last = key[-1]
            yield broken(
                "unknown key", number, f"{before}{key}{last}:{after}", f"has no key '{key}{last}'; its keys are "
            )
            yield broken(
                "key in capitals", number, f"{before}{key.upper()}:{after}", f"has no key '{key.upper()}'; its "
            )
        if after.strip():
            again = f"{before}{key}:{after}\n{before.replace('-', ' ')}{key}:{after}"
            yield broken("key twice", number, again, f"the key '{key}' is here twice, first on line", told=number + 1)
        yield broken("merge", number, f"{before}<<: {{a: b}}\n{before.replace('-', ' ')}{key}:{after}", "merge key <<")
        yield broken("complex key", number, f"{before}[{key}]:{after}", "a list or a mapping stands where a key is")
        yield broken("no colon", number, f"{before}{key}{after}", "no colon follows|is the text")
        if key in ("policy", "threshold", "path"):
            for value, reason in NO_YAML.items():
                yield broken("no YAML", number, f"{before}{key}: {value}", reason)
    for number, before, item in item_lines():
        if item in ("a dog", "a sword", "gun.png"):
            for value, reason in (NO_TEXTS | NO_YAML).items():
                yield broken("no text", number, f"{before}{value}", reason)
    for number, before, key, after in key_lines():
        if key in ("threshold", "recall"):
            values = NO_NUMBERS
        elif key in ("action", "severity", "unreadable"):
            values = NO_WORDS
        elif after.strip() and key in ("prompts", "counter-examples", "background"):
            values = NO_TEXTS
        elif key in ("path", "sha256", "description", "policy"):
            values = {value: NO_TEXTS[value] for value in ("", "~", '"   "', "[[a]]", "{a: b}", "x" * 2001)}
        else:
            continue
        for value, reason in values.items():
            yield broken(f"no {key}", number, f"{before}{key}: {value}", reason)
    for number, text in enumerate(LINES, start=1):
        for what, code, reason in (
            ("a byte", b"\xff", r"byte \d+ is not UTF-8; save the file as UTF-8"),
            ("a surrogate", b"\xed\xa0\x80", "is not UTF-8"),
            ("a null", b"\0", "control character U\\+0000"),
            ("a line separator", "\u2028".encode(), "control character U\\+2028"),
            ("a mark of byte order", "\ufeff".encode(), "control character U\\+FEFF"),
        ):
            yield broken(what, number, text.encode() + code, reason)
        if indent_of(text):
            yield broken("tab", number, text.replace(indent_of(text), "\t", 1), "a tab stands where spaces are needed")
    for name, reason in {
        "Weapons": "write lower-case letters.*: weapons",
        "my weapons": ": my-weapons",
        "-weapons": ": weapons",
        "x" * 65: "at most 64",
        '""': "the name of a category is empty",
        "~": "the name of a category is empty",
        "[]": "a list or a mapping stands where a key",
    }.items():
        yield broken("category's name", line_of("weapons:"), f"  {name}:", reason)
    for version, reason in {
        "2": "knows version 1",
        "1.5": "version is 1.5",
        "one": "a number is",
        '"1"': "quotes: 1",
    }.items():
        yield broken("version", line_of("version: 1"), f"version: {version}", reason)
    yield from missing()
    yield from contradictions()


def missing() -> Iterator[Case]:
    """What must be there and is not is told where that begins which lacks it."""
    yield broken("missing", line_of("policy: good"), "# gone", "a policy has no 'policy'; add it", told=3)
    yield broken("missing", line_of("version: 1"), "# gone", "a policy has no 'version'; add it", told=2)
    yield Case("missing", "\n".join(LINES[:9]).encode(), 2, "a policy has no 'categories'; add it")
    for nth, (name, at) in enumerate((("weapons", line_of("weapons:")), ("alcohol", line_of("alcohol:")))):
        action = (
            line_of("action: block") if nth == 0 else max(n for n, t in enumerate(LINES, 1) if t == "    action: flag")
        )
        yield broken("missing", action, "    # gone", f"category {name} has no 'action'; add it", told=at)
    yield broken("missing", line_of("threshold: 0.5"), "    # gone", "has neither threshold nor target", told=11)
    yield broken("missing", line_of("prompts: a glass of wine"), "    # gone", "no 'prompts'", told=line_of("alcohol:"))
    yield broken("missing", line_of("recall: 0.9"), "      {}", "target has 0 entries; give either precision or recall")
    yield Case("missing", "\n".join([*LINES[:10], "  weapons:"]).encode(), 11, "category weapons is empty")
    yield Case(
        "missing", "\n".join([*LINES[:9], "categories: {}"]).encode(), 10, "categories is empty; give at least one"
    )
    yield Case(
        "missing", "\n".join([*LINES[:9], "categories:"]).encode(), 10, "categories is empty; a mapping of names"
    )
    yield Case("missing", b"", 1, "the file is empty")
    yield Case("missing", b"# nothing\n", 1, "the file is empty")
    yield Case("another file", b"[1, 2]", 1, "a policy is a list; a mapping with policy, version")
    yield Case("another file", b"just words", 1, "a policy is the text 'just words'; a mapping with")
    yield Case("another file", b'{"model": 1}', 1, "a policy has no key 'model'; its keys are ")
    yield Case("another file", GOOD.encode("utf-16"), 1, "the file is UTF-16; save it as UTF-8")
    yield Case("another file", b"\x89PNG\r\n\x1a\n", 1, "is not UTF-8")
    yield Case("two documents", f"{GOOD}---\n{GOOD}".encode(), len(LINES) + 1, "a second document begins here")
    yield Case("too deep", ("a: " + "[" * 40).encode(), 1, "more than 10 lists and mappings inside one another")
    yield Case("too long", b"# " + b"x" * 1_000_000, 1, "more than 1,000,000 bytes")


def contradictions() -> Iterator[Case]:
    def after(line: int, new: str, reason: str, *, kind: str = "contradiction") -> Case:
        return broken(kind, line, f"{LINES[line - 1]}\n{new}", reason, told=line + 1)

    yield after(
        line_of("- a sword"), "      - A  PISTOL", "'A PISTOL' of prompts is in prompts, too, on line 14; remove"
    )
    yield after(line_of("- scissors"), "      - a sword", "'a sword' of counter-prompts is in prompts, too, on line 15")
    yield after(
        line_of("- a sword"), "      - A dog", "'A dog' of prompts is in background, too, on line 7; remove one"
    )
    yield broken("contradiction", 26, "      - prompts: a pistol", "of an exception is in prompts, too, on line 14")
    yield after(line_of("- gun.png"), "      - ./gun.png", "'./gun.png' of examples is in examples, too, on line 20")
    yield broken(
        "contradiction", 21, "    counter-examples: gun.png", "'gun.png' of counter-examples is in examples, too"
    )
    yield broken(
        "no file", 21, "    counter-examples: gnu.png", "'gnu.png' of counter-examples is no file in /.*; correct"
    )
    yield broken("no file", 21, "    counter-examples: .", "'.' of counter-examples is a folder; name the pictures")
    yield broken("no file", 21, '    counter-examples: "a\\0b"', "of counter-examples is no file")
    yield after(22, "    target: {recall: 0.9}", "category weapons has both threshold and target; give one")
    yield after(
        36, "      precision: 0.9", "target has 2 entries; give either precision or recall", kind="target"
    )._replace(line=36)
    yield broken("milder", 27, "        action: block", "the exception's action is block, .*; it must be allow or flag")
    yield broken("milder", 23, "    action: allow", "nothing is milder: remove the exception", told=27)
    yield broken("milder", 23, "    action: flag", "the exception's action is flag, .*; it must be allow", told=31)
    yield after(28, '        sha256: "00"', "an exception has path and sha256; give exactly one")._replace(line=28)
    yield broken("exception", 28, "      -", "an exception has none of prompts, path and sha256", told=29)
    yield broken("exception", 28, "      - a museum", "no colon follows this text, and line 29 continues it")
    yield broken("exception", 30, "      - sha256: 00ff", "sha256 is '00ff', 4 characters; it must be the 64 hexa")
    yield broken("exception", 30, f"      - sha256: {'0' * 63}g", "it must be the 64 hexadecimal digits")
    yield broken("template", 5, "templates: a photo", "template 'a photo' has no {}; write {}")
    yield broken("template", 5, 'templates: ["{}", "a photo of %s"]', "template 'a photo of %s' has no {}")
    yield broken("template", 5, f'templates: "{"word " * 75}{{}}"', "tokens in the template", told=14)
    for number, text in enumerate(LINES, start=1):
        if (
            text.startswith("    ")
            and ":" in text
            and not text.lstrip().startswith("-")
            and number not in (12, 26, 33, 36)
        ):
            yield broken("indented", number, f" {text}", "indented|colon inside a text|has no key|is a mapping")


CASES = list(cases())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policies")
    for name in ("gun.png", "water.png"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_the_good_one_is_good_and_hundreds_are_broken(folder: Path) -> None:
    path = folder / "good.yaml"
    path.write_text(GOOD)
    policy = read_policy(path)
    assert [category.name for category in policy.categories] == list(NAMES_OF_CATEGORIES)
    assert len({case.text for case in CASES}) == len(CASES) >= 300


@pytest.mark.parametrize("kind", sorted({case.kind for case in CASES}))
def test_the_line_and_the_reason(folder: Path, kind: str) -> None:
    for case in CASES:
        if case.kind == kind:
            assert problem_with(case, folder) is None


def problem_with(case: Case, folder: Path) -> str | None:
    """What the answer to a broken file lacks."""
    path = folder / "family.yaml"
    path.write_bytes(case.text)
    try:
        read_policy(path)
    except ConfigError as error:
        answer = str(error)
    else:
        return f"was taken: {case}"
    for line in answer.splitlines():
        if not re.fullmatch(rf"{re.escape(str(path))}(, line \d+: [^\n]+|: and \d+ more)", line) or "Traceback" in line:
            return f"no line, or no reason: {line}"
    if not re.search(rf", line {case.line}: .*({case.reason})", answer):
        return f"line {case.line} and {case.reason!r} are expected of\n{case.text.decode(errors='replace')}\n{answer}"
    return None


def test_bytes_changed_at_random_give_a_policy_or_a_line(folder: Path) -> None:
    path = folder / "random.yaml"
    rng = random.Random(0)
    taken = 0
    originals = [GOOD.encode()] * 9 + [policy_text(name).encode() for name in packaged_policies()]
    for _ in range(900):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.choice((1, 1, 2, 5, 20))):
            at = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.choice((1, 1, 3, 50))]
                case 2:
                    data[at:at] = rng.choice(
                        (b"\t", b":", b"- ", b"\n", b"[", b"{", b"'", b'"', b"#", b"&a ", b"*a", b"!")
                    )
                case 3:
                    data[at:at] = data[rng.randrange(len(data)) :][: rng.choice((1, 10, 100))]
                case _:
                    data = data[: max(at, 1)]
            data = data or bytearray(b"\n")
        path.write_bytes(data)
        try:
            policy = read_policy(path)
        except ConfigError as error:
            assert re.match(rf"{re.escape(str(path))}, line [1-9]\d*: \S", str(error)), data
        else:
            assert isinstance(policy, Policy)
            taken += 1
    assert 30 < taken < 600, "both outcomes are met"
