"""``clip score``: pictures → how well they fit a text, as CLIPScore and RefCLIPScore say it; the best of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from clip.cli import options
from clip.cli.console import Session, json_line, note, printable, progress, rounded, say
from clip.cli.pictures import count, find

if TYPE_CHECKING:
    from clip.features import Failure
    from clip.guidance.scores import Scored
    from clip.inference.loading import Runtime

__all__ = ["command"]

DONE, FAILED = 0, 1
ALL = sys.maxsize
"""``--best-of`` without a number."""

Write = Callable[["Sequence[Scored]", bool], None]
"""Prints pictures; whether they are all of one text, best first."""


@options.verb(
    "score",
    example="""
clip score generated/ --text "a red fox in the snow"
clip score generated/ --text "a red fox in the snow" --best-of 4 --paths
clip score --captions captions.csv --json
""",
)
@click.argument("pictures", nargs=-1, metavar="[PICTURES...]")
@click.option("--text", metavar="TEXT", help="What all the pictures should show.")
@click.option(
    "--captions", metavar="FILE", help="A text for each picture: CSV with path,caption[,references], or JSON lines."
)
@click.option(
    "--reference", multiple=True, metavar="TEXT", help="What a person wrote for them; may be given several times."
)
@click.option("--prefix", metavar="TEXT", help='Before each text; by default "A photo depicts", as published.')
@click.option(
    "--best-of",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=ALL,
    metavar="[N]",
    help="Best first, for each text; N keeps so many.",
)
@options.json_output("One JSON object a line for each picture, then one with the mean.")
@click.option("--paths", is_flag=True, help="Paths alone, for a pipe; with --best-of.")
@click.option("--model", default="pocket", show_default=True, metavar="NAME", help="As for 'clip classify'.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; by default cuda if there is one.")
@options.batch_size(32)
def command(
    session: Session,
    pictures: tuple[str, ...],
    text: str | None,
    captions: str | None,
    reference: tuple[str, ...],
    prefix: str | None,
    best_of: int | None,
    as_json: bool,
    paths: bool,
    model: str,
    device: str | None,
    batch_size: int,
) -> int:
    """Say how well each picture fits a text.

    By CLIPScore, and with references RefCLIPScore (Hessel et al. 2021).

    PICTURES are files, folders (searched with the folders inside), quoted patterns, or - for a list of paths on stdin.
    With --captions the file names them. Published scores are those of ViT-B/32; scores of two models cannot be
    compared. The model computes in fp32, as the definition needs, and has no --precision. A picture that cannot be read
    is reported and left out, and the exit status is then 1.
    """
    _check_usage(pictures, text, captions, reference, best_of, as_json, paths)
    from clip.guidance.captions import read_captions
    from clip.guidance.scores import PREFIX, Candidate, ranked, score_images
    from clip.inference.loading import runtime_of

    listed = None if captions is None else read_captions(captions)  # before the seconds that a model takes
    network, preprocess = options.load_for_inference(session, model, device, "fp32")
    if torch := sys.modules.get("torch"):  # not with an exported model
        torch.backends.cudnn.allow_tf32 = False  # its convolutions would keep 10 bits of 23
    runtime = runtime_of(network)
    note(session, f"{model}: {runtime}")
    failed = cut = 0
    with progress(session, "Scoring", lambda: count(pictures) if listed is None else len(listed)) as bar:

        def fail(message: str) -> None:
            nonlocal failed
            failed += 1
            with bar.paused():
                say(message)

        def on_error(failure: Failure[Any]) -> None:
            fail(str(failure.error))
            bar.advance(1)

        def counted(stream: Iterable[Scored]) -> Iterator[Scored]:
            nonlocal cut
            for one in stream:
                cut += one.is_cut
                bar.advance(1)
                yield one

        found = (Candidate(path, text or "", reference) for path in find(pictures, on_problem=fail))
        prefix = PREFIX if prefix is None else prefix
        scored = counted(
            score_images(network, preprocess, listed or found, prefix=prefix, batch_size=batch_size, on_error=on_error)
        )
        has_references = any(one.references for one in listed) if listed else bool(reference)
        columns = _Columns(has_references, has_texts=listed is not None)
        write = _paths if paths else _json(runtime) if as_json else _table(columns)
        if best_of is not None:
            for group in ranked(scored, keep=best_of):
                write(group, True)
        else:
            means = _Means()
            while rows := list(islice(scored, batch_size)):
                with bar.paused():
                    write(rows, False)
                    sys.stdout.flush()
                means.add(rows)
            if means.n:
                print(means.json() if as_json else means.line(columns))
    if cut:
        say(f"warning: {cut} of the pictures have a text longer than the context of {model}; its end was left out")
    if failed:
        say(f"error: {failed} of the pictures could not be scored")
        return FAILED
    return DONE


def _check_usage(
    pictures: tuple[str, ...],
    text: str | None,
    captions: str | None,
    reference: tuple[str, ...],
    best_of: int | None,
    as_json: bool,
    paths: bool,
) -> None:
    if (text is None) == (captions is None):
        raise click.UsageError("give either --text TEXT for all pictures, or --captions FILE with a text for each")
    if captions is not None and (pictures or reference):
        what = "PICTURES" if pictures else "--reference"
        raise click.UsageError(f"{what} and --captions exclude each other; the file names pictures and references")
    if captions is None and not pictures:
        raise click.UsageError("there are no pictures; name files or folders, or pass - to read paths from stdin")
    if text is not None and not text.strip():
        raise click.UsageError("--text is empty; say what the pictures should show")
    if not all(one.strip() for one in reference):
        raise click.UsageError("a --reference is empty; remove it")
    if paths and (best_of is None or as_json):
        raise click.UsageError("--paths goes with --best-of and without --json")


class _Means:
    """Of all pictures; RefCLIPScore of those that have references."""

    def __init__(self) -> None:
        self._clip_scores: list[float] = []
        self._ref_clip_scores: list[float] = []

    def add(self, rows: Sequence[Scored]) -> None:
        self._clip_scores += [one.clip_score for one in rows]
        self._ref_clip_scores += [one.ref_clip_score for one in rows if one.ref_clip_score is not None]

    @property
    def n(self) -> int:
        return len(self._clip_scores)

    def line(self, columns: _Columns) -> str:
        few = f", {len(self._ref_clip_scores)} with references" if 0 < len(self._ref_clip_scores) < self.n else ""
        return columns.line(fmean(self._clip_scores), self._mean_of_references(), f"mean of {self.n}{few}")

    def json(self) -> str:
        mean = {"clip_score": fmean(self._clip_scores), "ref_clip_score": self._mean_of_references()}
        counts = {"pictures": self.n, "pictures_with_references": len(self._ref_clip_scores)}
        return json_line({"mean": {key: None if v is None else rounded(v) for key, v in mean.items()} | counts})

    def _mean_of_references(self) -> float | None:
        return fmean(self._ref_clip_scores) if self._ref_clip_scores else None


# How scores are printed -----------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    """Of the table: numbers first, because paths and texts have any length."""

    has_references: bool
    has_texts: bool

    def header(self) -> str:
        numbers = "CLIPScore  RefCLIPScore" if self.has_references else "CLIPScore"
        return f"{numbers}  picture" + ("  text" if self.has_texts else "")

    def line(self, clip_score: float, ref_clip_score: float | None, *rest: str) -> str:
        cells = [f"{clip_score:>9.4f}"]
        if self.has_references:
            cells.append(f"{'-':>12}" if ref_clip_score is None else f"{ref_clip_score:>12.4f}")
        return "  ".join([*cells, *rest])


def _table(columns: _Columns) -> Write:
    is_first = True

    def write(rows: Sequence[Scored], is_ranked: bool) -> None:
        nonlocal is_first
        if is_first:
            print(columns.header())
        elif is_ranked:
            print()  # the pictures of another text
        is_first = False
        for one in rows:
            texts = [printable(one.text)] if columns.has_texts else []
            print(columns.line(one.clip_score, one.ref_clip_score, printable(str(one.image)), *texts))

    return write


def _json(runtime: Runtime) -> Write:
    def write(rows: Sequence[Scored], is_ranked: bool) -> None:
        for rank, one in enumerate(rows, start=1):
            value = {
                "file": one.image,
                "text": one.text,
                "clip_score": rounded(one.clip_score),
                "ref_clip_score": None if one.ref_clip_score is None else rounded(one.ref_clip_score),
                "rank": rank if is_ranked else None,
                "cut": one.is_cut,
                "engine": runtime.engine,
                "precision": runtime.precision,
            }
            print(json_line(value))

    return write


def _paths(rows: Sequence[Scored], is_ranked: bool) -> None:
    sys.stdout.flush()
    for one in rows:  # as bytes, because a file name need not be UTF-8
        sys.stdout.buffer.write(os.fsencode(str(one.image)) + b"\n")
    sys.stdout.buffer.flush()
