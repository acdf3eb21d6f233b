"""A policy as a file: what is read, what the ready ones hold, and when two policies are the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from clip.errors import ConfigError
from clip.moderation.policy import Category, Exemption, Policy, Target
from clip.moderation.policy_file import (
    CATEGORY_KEYS,
    EXCEPTION_KEYS,
    MOST_FAULTS,
    POLICY_KEYS,
    packaged_policies,
    policy_text,
    read_policy,
)
from clip.prompts import same_text

FAMILY = """\
# What the family album is for.
policy: family
version: 1
description: >
  Not for the
  album.
templates: "a photo of {}"
background: [a dog, "a cat: asleep"]
unreadable: block

categories:
  weapons:
    description: Guns.
    prompts:
      - a pistol
      - 'no'
    counter-prompts: a water pistol
    examples: [gun.png]
    counter-examples:
      - toys/water.png
    threshold: 0.8
    action: block
    severity: high
    exceptions:
      - prompts: a museum
        action: flag
      - path: "*/museum/*"
      - sha256: 1234567890123456789012345678901234567890123456789012345678901234
        action: flag
  alcohol:
    prompts: [a glass of wine]
    target: {recall: 9.9e-1}
    action: flag
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return written(tmp_path, FAMILY)


def written(folder: Path, text: str) -> Path:
    (folder / "toys").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "gun.png")
    Image.new("RGB", (8, 8), "blue").save(folder / "toys" / "water.png")
    path = folder / "family.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_that_a_file_can_say_is_read(family: Path) -> None:
    assert read_policy(family) == Policy(
        name="family",
        description="Not for the album.",
        templates=("a photo of {}",),
        background=("a dog", "a cat: asleep"),
        unreadable="block",
        categories=(
            Category(
                name="weapons",
                description="Guns.",
                prompts=("a pistol", "no"),
                counter_prompts=("a water pistol",),
                examples=(str(family.parent / "gun.png"),),
                counter_examples=(str(family.parent / "toys" / "water.png"),),
                threshold=0.8,
                action="block",
                severity="high",
                exemptions=(
                    Exemption(prompts=("a museum",), action="flag"),
                    Exemption(path="*/museum/*"),
                    Exemption(sha256="1234567890" * 6 + "1234", action="flag"),
                ),
            ),
            Category(
                name="alcohol",
                prompts=("a glass of wine",),
                target=Target(measure="recall", value=0.99),
                action="flag",
            ),
        ),
    )


def test_paths_are_relative_to_the_file_and_not_to_the_process(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_policy(family)
    monkeypatch.chdir(family.parent / "toys")
    assert read_policy("../family.yaml") == expected
    assert read_policy(Path("..") / "family.yaml").categories[0].examples == (str(family.parent / "gun.png"),)


# The ready ones -------------------------------------------------------------------------------------------------------


def test_packaged_policies_are_read_by_name() -> None:
    assert packaged_policies() == ("private-documents", "restricted-goods", "sensitive-media")
    for name in packaged_policies():
        policy = read_policy(name)
        assert policy.name == name
        assert policy.description
        assert f"policy: {name}\n" in policy_text(name)


@pytest.mark.parametrize("name", packaged_policies())
def test_ready_policies_are_fit_to_be_copied(name: str) -> None:
    """Each category explains itself, has rivals, and words of its own; a copy of the text is the same policy."""
    policy = read_policy(name)
    for category in policy.categories:
        assert category.description.endswith(".")
        assert len(category.prompts) >= 3
        assert len(category.counter_prompts) >= 5
    prompts = [same_text(prompt) for category in policy.categories for prompt in category.prompts]
    assert len(prompts) == len(set(prompts)), "a prompt speaks for two categories"
    assert policy_text(name).count("#") >= 5, "comments say why"


def test_a_copy_of_a_ready_policy_is_the_same_policy(tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(policy_text("restricted-goods"))
    assert read_policy(copy) == read_policy("restricted-goods")


def test_what_was_not_measured_says_so() -> None:
    assert "pocket, cannot judge" in read_policy("sensitive-media").description
    assert "not been measured" in read_policy("sensitive-media").description
    assert "not measured" in read_policy("private-documents").description
    assert {c.action for c in read_policy("sensitive-media").categories if c.name != "sexual-content"} == {"flag"}


def test_a_name_that_is_no_policy_gives_the_closest_one() -> None:
    with pytest.raises(
        ConfigError, match=r"no policy 'restricted-good': no file .* packaged ones are restricted-goods,"
    ):
        read_policy("restricted-good")
    with pytest.raises(ConfigError, match=r"'sensitive'; there are sensitive-media, "):
        policy_text("sensitive")


def test_a_folder_of_that_name_hides_no_packaged_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "restricted-goods").mkdir()
    assert read_policy("restricted-goods").name == "restricted-goods"
    with pytest.raises(ConfigError, match=r"'./restricted-goods' cannot be read \(Is a directory\)"):
        read_policy("./restricted-goods")


def test_the_page_shows_a_policy_that_is_one_and_names_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "policies.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(.*?)```", page, re.S)
    assert example is not None
    (tmp_path / "toy-shop.yaml").write_text(example[1])
    fingerprint = read_policy(tmp_path / "toy-shop.yaml").fingerprint
    assert f"by policy toy-shop ({fingerprint[:12]})" in page, "the output beside it is of this very policy"
    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    for key in {*POLICY_KEYS, *CATEGORY_KEYS, *EXCEPTION_KEYS, *packaged_policies()}:
        assert f"`{key}`" in rows, key


# The fingerprint ------------------------------------------------------------------------------------------------------


def test_a_policy_that_was_moved_or_only_looks_different_has_the_same_fingerprint(tmp_path: Path) -> None:
    first = read_policy(written(tmp_path / "a", FAMILY)).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert read_policy(written(tmp_path / "b", FAMILY)).fingerprint == first
    head, weapons, alcohol = re.split(r"(?=  weapons:)|(?=  alcohol:)", FAMILY)
    looks_different = (
        (head + alcohol + weapons)
        .replace("    action: block\n", "")
        .replace("    threshold: 0.8\n", "    # a comment\n    action: block\n    threshold: 8.0e-1\n")
    )
    looks_different = looks_different.replace("description: Guns.", "description: Firearms.")
    assert read_policy(written(tmp_path / "c", looks_different)).fingerprint == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("threshold: 0.8", "threshold: 0.81"),
        ("a water pistol", "a water gun"),
        ("severity: high", "severity: low"),
        ("[a dog,", "[a hog,"),
        ("a photo of {}", "a picture of {}"),
        ("unreadable: block", "unreadable: allow"),
        ("recall: 9.9e-1", "precision: 9.9e-1"),
        ("examples: [gun.png]", "examples: [gun.png, family.yaml]"),
        ('path: "*/museum/*"', 'path: "*/museums/*"'),
    ],
)
def test_any_change_that_decides_changes_the_fingerprint(tmp_path: Path, old: str, new: str) -> None:
    assert old in FAMILY
    first = read_policy(written(tmp_path / "a", FAMILY)).fingerprint
    assert read_policy(written(tmp_path / "b", FAMILY.replace(old, new))).fingerprint != first


def test_an_example_counts_by_its_contents(family: Path) -> None:
    before = read_policy(family)
    assert before.fingerprint
    Image.new("RGB", (8, 8), "green").save(family.parent / "gun.png")
    after = read_policy(family)
    assert after == before, "the same paths"
    assert after.fingerprint != before.fingerprint
    changed = read_policy(family)
    (family.parent / "gun.png").unlink()
    with pytest.raises(ConfigError, match=r"the example .*gun\.png cannot be read"):
        _ = changed.fingerprint


# In memory, the same is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Target(measure="precision", value=95.0), r"precision is 95; .* \(for 95 %, write 0\.95\)"),
        (lambda: Target(measure="f1", value=0.5), r"'f1'; it must be one of precision, recall"),  # type: ignore[arg-type]
        (lambda: Exemption(), "has none of prompts, path and sha256; give one"),
        (lambda: Exemption(path="a", sha256="b"), "has path and sha256 of"),
        (lambda: Exemption(sha256="AB" * 32), "64 hexadecimal digits"),
        (lambda: category(threshold=float("nan")), "threshold is nan; it must be above 0 and below 1"),
        (lambda: category(threshold=None), "category guns has neither threshold nor target"),
        (lambda: category(target=Target(measure="recall", value=0.5)), "both threshold and target"),
        (lambda: category(prompts=()), "category guns has no prompts"),
        (lambda: category(prompts="a gun"), "is one string; give a tuple"),
        (lambda: category(prompts=("a gun", "A  Gun")), "'A  Gun' is in prompts and in prompts"),
        (lambda: category(counter_prompts=("a gun",)), "'a gun' is in counter-prompts and in prompts"),
        (lambda: category(name="Big Guns"), "'Big Guns'; write lower-case .*: big-guns"),
        (lambda: category(action="warn"), "action is 'warn'; it must be one of allow, flag, block"),
        (lambda: category(exemptions=(Exemption(path="*", action="flag"),)), "action is flag, .*; it must be allow"),
        (lambda: Policy(name="p", categories=()), "policy p has no categories"),
        (lambda: Policy(name="p", categories=(category(), category())), "two categories named guns"),
        (lambda: Policy(name="p", categories=(category(),), templates=("a photo",)), "has no {}"),
        (lambda: Policy(name="p", categories=(category(),), background=("A gun",)), "'A gun' is in the background"),
    ],
)
def test_a_policy_made_in_python_is_held_to_the_same(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def category(**changes: object) -> Category:
    values = {"name": "guns", "prompts": ("a gun",), "threshold": 0.5} | changes
    return Category(**values)  # type: ignore[arg-type]


# What a wrong file is answered ----------------------------------------------------------------------------------------


def test_all_faults_are_told_at_once_and_no_more_than_ten(tmp_path: Path) -> None:
    broken = (
        FAMILY.replace("0.8", "1.2").replace("severity: high", "severity: hihg").replace("action: flag", "action: off")
    )
    path = written(tmp_path / "a", broken)
    with pytest.raises(ConfigError) as error:
        read_policy(path)
    assert str(error.value).splitlines() == [
        f"{path}, line 21: threshold is 1.2; it must be above 0 and below 1",
        f"{path}, line 23: severity is 'hihg'; it must be one of high, low, medium, critical",
        f"{path}, line 26: action is 'off'; it must be one of allow, flag, block",
        f"{path}, line 29: action is 'off'; it must be one of allow, flag, block",
        f"{path}, line 33: action is 'off'; it must be one of allow, flag, block",
    ]
    many = "policy: p\nversion: 1\ncategories:\n" + "".join(
        f"  c{i}: {{prompts: a{i}, threshold: 7, action: flag}}\n" for i in range(30)
    )
    path.write_text(many)
    with pytest.raises(ConfigError) as error:
        read_policy(path)
    lines = str(error.value).splitlines()
    assert len(lines) == MOST_FAULTS + 1
    assert lines[-1] == f"{path}: and 20 more"


def test_a_key_that_is_only_misspelt_is_told_once(tmp_path: Path) -> None:
    path = written(tmp_path / "a", FAMILY.replace("categories:", "categorys:"))
    with pytest.raises(ConfigError) as error:
        read_policy(path)
    assert str(error.value).startswith(f"{path}, line 11: a policy has no key 'categorys'; its keys are categories, ")
    assert len(str(error.value).splitlines()) == 1


def test_depth_is_bounded_at_ten(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    for depth, message in ((9, "a policy has no key 'a'"), (10, "more than 10 lists and mappings inside one another")):
        path.write_text("a: " + "[" * depth + "]" * depth)
        with pytest.raises(ConfigError, match=message):
            read_policy(path)


def test_special_words_are_ordinary_characters(tmp_path: Path) -> None:
    """For OpenAI's tokenizer each is one token, which hides all that follows; here they are counted as they read."""
    path = tmp_path / "p.yaml"
    path.write_text(
        "policy: p\nversion: 1\ncategories:\n  c:\n    prompts:\n      - <|endoftext|> a gun\n"
        "    threshold: 0.5\n    action: flag\n"
    )
    assert read_policy(path).categories[0].prompts == ("<|endoftext|> a gun",)
    path.write_text(path.read_text().replace("<|endoftext|>", "<|endoftext|>" * 12))
    with pytest.raises(
        ConfigError, match=r"line 6: .* tokens in the template .*context of a text tower is 77; shorten"
    ):
        read_policy(path)


def test_reading_takes_no_torch() -> None:
    code = (
        "import sys; from clip.moderation.policy_file import read_policy; read_policy('restricted-goods').fingerprint; "
        "print(sorted({'torch', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_a_pipe_or_a_device_is_read_no_further_than_the_limit() -> None:
    if not os.path.exists("/dev/zero"):  # noqa: PTH110
        pytest.skip("no /dev/zero here")
    with pytest.raises(ConfigError, match=r"/dev/zero, line 1: the file has more than 1,000,000 bytes"):
        read_policy("/dev/zero")


def test_a_file_as_large_as_the_limit_is_answered_in_a_bounded_time(tmp_path: Path) -> None:
    """Not a measurement: a scanner whose time grows with the square of the length would be here for hours."""
    path = tmp_path / "large.yaml"
    for text in ("[" * 900_000, "{" * 900_000, "- " * 400_000, "? " * 400_000, "a: " * 300_000, "'" + "''" * 450_000):
        path.write_text(text)
        begun = time.monotonic()
        with pytest.raises(ConfigError, match="line 1: "):
            read_policy(path)
        assert time.monotonic() - begun < 60
