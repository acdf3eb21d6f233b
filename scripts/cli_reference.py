"""Prints docs/cli.md: the help of every verb, as the command itself gives it.

python scripts/cli_reference.py > docs/cli.md
"""

from __future__ import annotations

import click

from clip.cli.main import VERBS, group

WIDTH = 100

INTRODUCTION = """\
# The `clip` command

Made from the command's own help by `python scripts/cli_reference.py > docs/cli.md`; a test keeps it current.

`clip`, `everyclip` and `python -m clip` are the same command. Results go to stdout and nothing else does; messages,
bars and summaries go to stderr. A bar appears only where stderr is a terminal. How to use the verbs is on other pages:
[classify](classify.md), [encode](encode.md), [models and downloads](download.md).

| Exit status | Meaning |
|---|---|
| 0 | done |
| 1 | failed, with one line on stderr; or some items failed, each with a line, and all others are done |
| 2 | wrong usage |
| 3 | a negative verdict that `--check` asked for |
| 130 | interrupted |
"""


def reference() -> str:
    """The whole page."""
    root = click.Context(group, info_name="clip", terminal_width=WIDTH, help_option_names=["-h", "--help"])
    parts = [INTRODUCTION, _section("clip", group.get_help(root))]
    for verb in VERBS:
        command = group.get_command(root, verb)
        assert command is not None
        context = click.Context(command, parent=root, info_name=verb, terminal_width=WIDTH)
        parts.append(_section(f"clip {verb}", command.get_help(context)))
        for name, inner in getattr(command, "commands", {}).items():
            below = click.Context(inner, parent=context, info_name=name, terminal_width=WIDTH)
            parts.append(_section(f"clip {verb} {name}", inner.get_help(below)))
    return "\n".join(parts)


def _section(title: str, text: str) -> str:
    return f"## `{title}`\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    print(reference(), end="")
