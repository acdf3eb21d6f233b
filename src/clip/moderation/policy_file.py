"""A policy as a file: YAML → ``Policy``, or all that is wrong with it, line by line. The schema: docs/policies.md.

Paths of examples are relative to the folder of the file. Nothing of the file is run, and it is bounded in every way.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from clip.errors import ConfigError, TextTooLongError, choices
from clip.moderation.policy import (
    ACTIONS,
    MEASURES,
    SEVERITIES,
    Action,
    Category,
    Exemption,
    Policy,
    Severity,
    Target,
    check_milder,
    check_name,
    check_prompt,
    check_sha256,
    check_share,
    excerpt,
)
from clip.moderation.yaml_tree import LARGEST, Listing, Mapping, Node, Text, YamlError, read_tree
from clip.moderation.yaml_values import MOST_TEXTS, NOTHING, Taken, Values, described
from clip.prompts import DEFAULT_TEMPLATES, fill, same_text

__all__ = ["packaged_policies", "policy_text", "read_policy"]

PACKAGED = Path(__file__).with_name("policies")

VERSION = 1
"""Of the schema."""

CONTEXT_LENGTH = 77
"""Tokens of a prompt in its template, with start and end: what CLIP's text towers take."""

MOST_CATEGORIES = 100

MOST_FAULTS = 10
"""Told at once."""

POLICY_KEYS = ("policy", "version", "description", "templates", "background", "unreadable", "categories")
CATEGORY_KEYS = (
    *("description", "prompts", "counter-prompts", "examples", "counter-examples"),
    *("threshold", "target", "action", "severity", "exceptions"),
)
EXCEPTION_KEYS = ("prompts", "path", "sha256", "action")


def packaged_policies() -> tuple[str, ...]:
    """Names of the policies that come with the package."""
    return tuple(sorted(path.stem for path in PACKAGED.glob("*.yaml")))


def policy_text(name: str) -> str:
    """The file of a packaged policy, to read or to begin one's own with. Raises ConfigError for another name."""
    if name not in packaged_policies():
        raise ConfigError(f"there is no packaged policy {name!r}; there are {choices(name, packaged_policies())}")
    return (PACKAGED / f"{name}.yaml").read_text(encoding="utf-8")


def read_policy(name_or_path: str | os.PathLike[str]) -> Policy:
    """A packaged policy by its name, or one of your own by its path.

    Raises ConfigError for a file that cannot be read, and for one that is no policy: a line for each of the first ten
    faults, such as ``family.yaml, line 14: threshold is 1.2; it must be above 0 and below 1``.
    """
    name = os.fspath(name_or_path)
    path = PACKAGED / f"{name}.yaml" if name in packaged_policies() else Path(name)
    data = _bytes_of(path, name)
    folder = os.path.abspath(path.parent)  # noqa: PTH100  # Path.absolute keeps the dots of ../pictures
    try:
        tree = read_tree(data)
        reader = _Reader(folder)
        policy = reader.policy(tree)
        faults = sorted(reader.faults)
    except YamlError as error:
        policy, faults = None, [error.fault]
    if policy is not None and not faults:
        return policy
    lines = [f"{path}, line {fault.line}: {fault.message}" for fault in faults[:MOST_FAULTS]]
    if len(faults) > MOST_FAULTS:
        lines.append(f"{path}: and {len(faults) - MOST_FAULTS} more")
    raise ConfigError("\n".join(lines))


def _bytes_of(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if getattr(error, "errno", None) == errno.ENOENT:
            known = choices(name, packaged_policies())
            raise ConfigError(
                f"there is no policy {name!r}: no file has this path, and the packaged ones are {known}"
            ) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the policy {name!r} cannot be read ({reason}); give the path of a YAML file") from error


class _Reader(Values):
    """Goes down the tree by the schema."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    # The schema, from the top -----------------------------------------------------------------------------------------

    def policy(self, tree: Node) -> Policy | None:
        if isinstance(tree, Text) and not tree.text:
            self.fault(tree.line, "the file is empty; 'policy: NAME' and 'categories:' are expected")
            return None
        keys = self.mapping(tree, "a policy", POLICY_KEYS, required=("policy", "version", "categories"))
        if "version" in keys:
            self.version(keys["version"])
        name = self.name(keys.get("policy"), "policy")
        templates = self.templates(keys.get("templates"))
        lengths = _LongestFits(templates or DEFAULT_TEMPLATES)
        background = self.prompts(keys.get("background"), "background", lengths, {})
        unreadable = self.choice(keys.get("unreadable"), "unreadable", ACTIONS, "flag")
        description = self.description(keys.get("description"))
        against = {same_text(text.text): ("background", text.line) for text in background}
        categories = self.categories(keys.get("categories"), lengths, against)
        if self.faults:
            return None
        return Policy(
            name=name,
            categories=tuple(categories),
            background=_texts(background),
            templates=templates,
            unreadable=cast(Action, unreadable),
            description=description,
        )

    def version(self, node: Node) -> None:
        number = self.number(node, "version")
        if number is not None and number != VERSION:
            self.fault(node.line, f"version is {number:g}; this reader knows version {VERSION}")

    def templates(self, node: Node | None) -> tuple[str, ...]:
        texts = self.texts(node, "templates")
        for text in texts:
            self.passes(text.line, fill, text.text, "")
        return _texts(texts)

    def categories(self, node: Node | None, lengths: _LongestFits, against: Taken) -> list[Category]:
        if node is None:
            return []
        if not isinstance(node, Mapping):
            self.fault(node.line, f"categories is {described(node)}; a mapping of names to categories is expected")
            return []
        if not node.pairs:
            self.fault(node.line, "categories is empty; give at least one")
        if len(node.pairs) > MOST_CATEGORIES:
            self.fault(node.line, f"there are {len(node.pairs)} categories; the limit is {MOST_CATEGORIES}")
            return []
        found = [self.category(key, value, lengths, dict(against)) for key, value in node.pairs]
        return [category for category in found if category is not None]

    def category(self, key: Text, node: Node, lengths: _LongestFits, taken: Taken) -> Category | None:
        name = self.name(key, "the name of a category")
        where = f"category {name}" if name else "a category"
        if isinstance(node, Text) and not node.is_quoted and node.text in NOTHING:
            self.fault(key.line, f"{where} is empty; give prompts, a threshold or target, and an action")
            return None
        before = len(self.faults)
        keys = self.mapping(node, where, CATEGORY_KEYS, required=("prompts", "action"), line=key.line)
        if isinstance(node, Mapping) and ("threshold" in keys) == ("target" in keys):
            has = "both threshold and target" if "target" in keys else "neither threshold nor target"
            line = max(keys["threshold"].line, keys["target"].line) if "target" in keys else key.line
            self.fault(line, f"{where} has {has}; give one of them")
        prompts = self.prompts(keys.get("prompts"), "prompts", lengths, taken)
        counter_prompts = self.prompts(keys.get("counter-prompts"), "counter-prompts", lengths, taken)
        shown: Taken = {}
        examples = self.pictures(keys.get("examples"), "examples", shown)
        counter_examples = self.pictures(keys.get("counter-examples"), "counter-examples", shown)
        threshold = self.share(keys.get("threshold"), "threshold")
        target = self.target(keys.get("target"))
        action = self.choice(keys.get("action"), "action", ACTIONS, "flag")
        severity = self.choice(keys.get("severity"), "severity", SEVERITIES, "medium")
        exemptions = self.exemptions(keys.get("exceptions"), action, lengths, taken)
        description = self.description(keys.get("description"))
        if len(self.faults) > before or not name:
            return None
        return Category(
            name=name,
            prompts=_texts(prompts),
            counter_prompts=_texts(counter_prompts),
            examples=tuple(examples),
            counter_examples=tuple(counter_examples),
            threshold=threshold,
            target=target,
            action=cast(Action, action),
            severity=cast(Severity, severity),
            exemptions=tuple(exemptions),
            description=description,
        )

    def target(self, node: Node | None) -> Target | None:
        if node is None:
            return None
        keys = self.mapping(node, "target", MEASURES)
        if isinstance(node, Mapping) and len(node.pairs) != 1:
            self.fault(node.line, f"target has {len(node.pairs)} entries; give either precision or recall")
            return None
        for measure in MEASURES:
            value = self.share(keys.get(measure), measure)
            if value is not None:
                return Target(measure=measure, value=value)
        return None

    def exemptions(
        self, node: Node | None, of_category: str | None, lengths: _LongestFits, taken: Taken
    ) -> list[Exemption]:
        if node is None:
            return []
        if not isinstance(node, Listing):
            self.fault(
                node.line, f"exceptions is {described(node)}; a list of mappings, each after a hyphen, is expected"
            )
            return []
        if len(node.items) > MOST_TEXTS:
            self.fault(node.line, f"exceptions has {len(node.items)} entries; the limit is {MOST_TEXTS}")
            return []
        found = [self.exemption(item, of_category, lengths, taken) for item in node.items]
        return [exemption for exemption in found if exemption is not None]

    def exemption(self, node: Node, of_category: str | None, lengths: _LongestFits, taken: Taken) -> Exemption | None:
        before = len(self.faults)
        keys = self.mapping(node, "an exception", EXCEPTION_KEYS)
        given = [key for key in ("prompts", "path", "sha256") if key in keys]
        if isinstance(node, Mapping) and len(given) != 1:
            has = " and ".join(given) or "none of prompts, path and sha256"
            self.fault(node.line, f"an exception has {has}; give exactly one of prompts, path and sha256")
        prompts = self.prompts(keys.get("prompts"), "the prompts of an exception", lengths, taken)
        path = self.text(keys["path"], "path") if "path" in keys else None
        digest = self.text(keys["sha256"], "sha256") if "sha256" in keys else None
        if digest is not None:
            self.passes(digest.line, check_sha256, digest.text.lower())
        action = self.choice(keys.get("action"), "action", ACTIONS, "allow")
        if action is not None and of_category is not None:
            line = keys["action"].line if "action" in keys else node.line
            self.passes(line, check_milder, cast(Action, action), cast(Action, of_category))
        if len(self.faults) > before:
            return None
        return Exemption(
            prompts=_texts(prompts),
            path=path.text if path else None,
            sha256=digest.text.lower() if digest else None,
            action=cast(Action, action),
        )

    # Values that only policies have --------------------------------------------------------------------------------

    def description(self, node: Node | None) -> str:
        text = self.text(node, "description") if node is not None else None
        return text.text if text else ""

    def prompts(self, node: Node | None, what: str, lengths: _LongestFits, taken: Taken) -> list[Text]:
        """Texts that a text tower takes, none of them in ``taken``, to which they are added."""
        texts = self.texts(node, what)
        for text in texts:
            self.passes(text.line, check_prompt, text.text) and self.passes(text.line, lengths.check, text.text)
            self.once(same_text(text.text), text, what, taken)
        return texts

    def pictures(self, node: Node | None, what: str, taken: Taken) -> list[str]:
        """Absolute paths of files."""
        paths = []
        for text in self.texts(node, what):
            path = os.path.normpath(os.path.join(self.folder, text.text))  # noqa: PTH118  # a name may hold anything
            if os.path.isdir(path):  # noqa: PTH112
                self.fault(text.line, f"{excerpt(text.text)} of {what} is a folder; name the pictures in it")
            elif not os.path.isfile(path):  # noqa: PTH113
                self.fault(text.line, f"{excerpt(text.text)} of {what} is no file in {self.folder}; correct the path")
            self.once(path, text, what, taken)
            paths.append(path)
        return paths

    def name(self, node: Node | None, what: str) -> str:
        text = self.text(node, what) if node is not None else None
        return text.text if text and self.passes(text.line, check_name, what, text.text) else ""

    def share(self, node: Node | None, what: str) -> float | None:
        number = self.number(node, what) if node is not None else None
        if node is None or number is None:
            return None
        return number if self.passes(node.line, check_share, what, number) else None


class _LongestFits:
    """Whether prompts fit into a text tower in the longest of their templates."""

    def __init__(self, templates: Sequence[str]) -> None:
        self._templates = [template for template in templates if "{}" in template]

    def check(self, prompt: str) -> None:
        """Raises ConfigError for a prompt that does not fit."""
        from clip.simple_tokenizer import token_ids  # NumPy, and a vocabulary to read

        for template in self._templates:
            try:
                token_ids([fill(template, prompt)], CONTEXT_LENGTH, special_words=False)
            except TextTooLongError as error:
                bare = "" if template == "{}" else f" in the template {template!r}"
                found = re.search(r"has (\d+) tokens", str(error))
                raise ConfigError(
                    f"the prompt {excerpt(prompt)} has {found[1] if found else 'too many'} tokens{bare}, with start "
                    f"and end; the context of a text tower is {CONTEXT_LENGTH}; shorten it"
                ) from error


def _texts(texts: Sequence[Text]) -> tuple[str, ...]:
    return tuple(text.text for text in texts)
