"""Exit statuses, one-line errors, and what must not be imported."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import clip
from clip.cli import main as cli_main
from clip.cli.main import VERBS, group
from clip.errors import ChecksumError, ConfigError

CONTEXT = click.Context(group)
Run = Callable[..., Any]


def test_help_lists_the_verbs_in_their_order(clip_run: Run) -> None:
    outcome = clip_run("--help")
    assert outcome.status == 0
    assert outcome.err == ""
    places = [outcome.out.index(f"\n  {verb} ") for verb in VERBS]
    assert places == sorted(places)
    assert "..." not in outcome.out.split("Commands:")[1]  # no summary is cut off


def test_no_arguments_show_the_help_and_are_wrong_usage(clip_run: Run) -> None:
    outcome = clip_run()
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: clip")
    assert "\n  train " in outcome.err  # in lines


def test_the_version_is_that_of_the_package(clip_run: Run) -> None:
    assert clip_run("--version").out == f"everyclip, version {clip.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_an_example_and_the_common_options(clip_run: Run, verb: str) -> None:
    outcome = clip_run(verb, "--help")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"\n  Example:\n    clip {verb}" in outcome.out
    for option in ("--quiet", "--debug", "--help"):
        assert option in outcome.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_and_command_is_explained(verb: str) -> None:
    command = group.get_command(CONTEXT, verb)
    assert command is importlib.import_module(f"clip.cli.{verb}").command
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{verb} {parameter.opts}"


def test_an_unknown_verb_names_the_verbs_closest_first(clip_run: Run) -> None:
    outcome = clip_run("clasify")
    assert (outcome.status, outcome.out) == (2, "")
    assert "there is no verb 'clasify'; the verbs are classify, encode" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nonsense",),
        ("classify",),
        ("classify", "a.png"),
        ("classify", "a.png", "--labels", "a,b", "--json", "--csv"),
        ("classify", "a.png", "--labels", "a,b", "--check"),
        ("classify", "a.png", "--labels", "a,b", "--top-k", "0"),
        ("classify", "a.png", "--labels", "a,b", "--reject-below", "1.5"),
        ("classify", "a.png", "--labels", "a"),
        ("classify", "a.png", "--labels", "a,A"),
        ("classify", "a.png", "--labels", "a,,b"),
        ("classify", "a.png", "--labels", '"a,b'),
        ("classify", "a.png", "--labels", "a,b", "--template", "a photo"),
        ("encode", "a.png"),
        ("encode", "--output", "a.npy"),
        ("encode", "a.png", "--texts", "-", "--output", "a.npy"),
        ("encode", "a.png", "--output", "a.csv"),
        ("encode", "a.png", "--output", "gone/a.npy"),
        ("convert", "a", "b"),
        ("convert", "a", "b", "--to", "onnx"),
        ("download",),
    ],
)
def test_wrong_usage_is_2_and_prints_nothing_on_stdout(clip_run: Run, arguments: tuple[str, ...]) -> None:
    outcome = clip_run(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    assert outcome.err.strip()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ChecksumError("expected 1, found 2"), 1, "clip: error: expected 1, found 2\n"),
        (ConfigError("x is 1"), 2, "clip: error: x is 1\n"),
        (PermissionError(13, "Permission denied", "a.npy"), 1, "clip: error: [Errno 13] Permission denied: 'a.npy'\n"),
        (click.ClickException("a\nb"), 1, "clip: error: a\\nb\n"),
        (MemoryError(), 1, "clip: error: out of memory; make --batch-size smaller\n"),
        (KeyboardInterrupt(), 130, "clip: interrupted\n"),
        (click.Abort(), 130, "clip: interrupted\n"),
    ],
)
def test_each_failure_is_one_line_and_a_status(
    clip_run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("clip.cli.models").command, "callback", fail)
    outcome = clip_run("models")
    assert (outcome.status, outcome.out, outcome.err.lstrip("\n")) == (status, "", message)


def test_a_bug_is_told_as_one_and_debug_shows_where(clip_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("forgotten")

    monkeypatch.setattr(importlib.import_module("clip.cli.models").command, "callback", fail)
    outcome = clip_run("models")
    assert outcome.status == 1
    assert outcome.err == "clip: error: unexpected KeyError: 'forgotten'; --debug shows where. Please report it\n"
    assert "Traceback" in clip_run("models", "--debug").err


def test_a_reader_that_goes_away_is_no_drama(clip_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(importlib.import_module("clip.cli.models").command, "callback", fail)
    monkeypatch.setattr(cli_main, "_drop_stdout", lambda: None)
    outcome = clip_run("models")
    assert (outcome.status, outcome.err) == (1, "")


def test_a_foreign_clip_is_named_with_the_remedy(
    clip_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    foreign = types.ModuleType("clip")  # openai/CLIP's __init__ imports everything and defines no version
    foreign.__file__ = str(tmp_path / "clip" / "__init__.py")
    monkeypatch.setattr(cli_main, "clip", foreign)
    info = tmp_path / "openai_clip-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: openai-clip\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("clip\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = clip_run("models")
    assert (outcome.status, outcome.out) == (1, "")
    assert f"{foreign.__file__} is not everyclip's: openai-clip also installs a package named clip" in outcome.err
    assert "pip uninstall openai-clip" in outcome.err


def test_stdout_without_a_reader_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        stream.write("left in the buffer")
        os.close(read)
        cli_main._drop_stdout()  # without it the next line raises
        stream.flush()


@pytest.mark.parametrize("verb", ["search", "models"])
def test_a_search_hurries_and_other_verbs_do_not(verb: str) -> None:
    code = """
import gc, os, sys
import clip.cli.main as cli_main
cli_main.run = lambda arguments: print(arguments, gc.isenabled(), os.environ.get("OPENBLAS_NUM_THREADS")) or 3
sys.argv = ["clip", sys.argv[1], "search"]
cli_main.main()
"""
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "-c", code, verb]
    outcome = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    expected = (False, "1") if verb == "search" else (True, None)
    assert (outcome.returncode, outcome.stderr) == (3, "")
    assert outcome.stdout == f"{[verb, 'search']} {expected[0]} {expected[1]}\n"
