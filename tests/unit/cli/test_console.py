"""What reaches a terminal, and what JSON readers get back."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip.cli.console import ByteBar, Session, json_line, printable, progress, rounded, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.png", "plain name.png"),
        ("Käuzchen 日本 🦉", "Käuzchen 日本 🦉"),
        ("two\nlines\t", r"two\nlines\t"),
        ("\x1b[2J clears", r"\x1b[2J clears"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # shown from right to left, it would look like another name
        ("not UTF-8: \udcff", r"not UTF-8: \xff"),
        ("lone \ud800", r"lone \ud800"),
    ],
)
def test_nothing_that_a_terminal_would_obey_is_printed(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_what_is_printed_is_one_line_of_utf8(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@given(text=st.text(st.characters(exclude_categories=[])))
def test_json_gives_any_name_back(encoding: str, text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    before, sys.stdout = sys.stdout, stream
    try:
        line = json_line({"file": text})
    finally:
        sys.stdout = before
    line.encode(encoding)
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"file": text}


def test_json_is_readable_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert json_line({"label": "Käuzchen"}) == '{"label": "Käuzchen"}'


def test_numbers_have_the_digits_of_single_precision() -> None:
    assert [rounded(x) for x in (0.98345530033, 1e-12 / 3, 1.0, 0.0)] == [0.983455, 3.33333e-13, 1.0, 0.0]


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("bad\nname")
    assert capsys.readouterr() == ("", "clip: bad\\nname\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> int:
        raise AssertionError("counted for nobody")

    for session, stream in ((Session(), io.StringIO()), (Session(quiet=True), Terminal())):
        monkeypatch.setattr("sys.stderr", stream)
        with progress(session, "Working", never) as bar, bar.paused():
            bar.advance(1)
        with ByteBar(session, "file") as download:
            download(1, 2)
        assert stream.getvalue() == ""


def test_a_bar_counts_and_leaves_stdout_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress(Session(), "Working", lambda: 3) as bar:
        bar.advance(2)
        print("a result")
        with bar.paused():
            print("another")
    assert "Working" in terminal.getvalue()
    assert "2/3" in terminal.getvalue()
    assert capsys.readouterr().out == "a result\nanother\n"


def test_a_download_shows_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with ByteBar(Session(), "RN50") as bar:
        bar(0, None)
        bar(500_000, 2_000_000)
    assert "RN50" in terminal.getvalue()
