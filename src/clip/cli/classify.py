"""``clip classify``: pictures → the best of the given labels."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from clip.cli import options
from clip.cli.console import Session, json_line, note, printable, progress, rounded, say, tail
from clip.cli.pictures import count, find

if TYPE_CHECKING:
    from clip.evaluation.zero_shot import Classification, ZeroShotClassifier
    from clip.features import Failure
    from clip.inference.loading import Runtime
    from clip.inference.precision import Precision

__all__ = ["command"]

DONE, FAILED, NEGATIVE = 0, 1, 3

Write = Callable[["list[Classification]"], None]
"""Prints the answers for some pictures."""


@options.verb(
    "classify",
    example="""
clip classify photos/ --labels "cat,dog,bird"
clip classify "scans/*.png" --labels-file labels.txt --reject-below 0.5 --csv
find / -name "*.jpg" | clip classify - --labels "cat,dog" --json
""",
)
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURES...")
@click.option(
    "--labels", multiple=True, metavar="A,B,…", help="Labels between commas; quote one with a comma as in CSV."
)
@click.option(
    "--labels-file", metavar="FILE", help="Labels, one a line (# comments), or a JSON list; lists are synonyms."
)
@click.option(
    "--template", multiple=True, metavar="TEXT", help="Prompt with {} for the label; may be given several times."
)
@click.option("--templates-file", metavar="FILE", help="Prompts, one a line, or a JSON list.")
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Labels to show for each picture.",
)
@click.option(
    "--reject-below", type=click.FloatRange(0, 1), metavar="P", help="Answer 'none' where the best label has less."
)
@click.option("--background", is_flag=True, help="Let general prompts compete; answer 'none' where they win.")
@options.json_output("One JSON object a line for each picture.")
@click.option("--csv", "as_csv", is_flag=True, help="A CSV table, one row for each picture and label.")
@click.option("--check", is_flag=True, help="Exit with 3 if any picture is answered 'none'.")
@options.model_options
@options.batch_size(32)
def command(
    session: Session,
    pictures: tuple[str, ...],
    labels: tuple[str, ...],
    labels_file: str | None,
    template: tuple[str, ...],
    templates_file: str | None,
    top_k: int,
    reject_below: float | None,
    background: bool,
    as_json: bool,
    as_csv: bool,
    check: bool,
    model: str,
    device: str | None,
    precision: Precision,
    batch_size: int,
) -> int:
    """Say which label fits each picture best.

    PICTURES are files, folders (searched with the folders inside), quoted patterns, or - for a list of paths on stdin.
    The percentages divide one certainty between the labels given: they say which label fits better, not whether any
    does. A picture that cannot be read is reported and left out, and the exit status is then 1.
    """
    from clip import prompts

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other; choose one")
    if check and reject_below is None and not background:
        raise click.UsageError("--check needs --reject-below or --background; without them no picture is rejected")
    names: list[str | list[str]] = [name for text in labels for name in prompts.parse_names(text)]
    if labels_file is not None:
        names += prompts.read_names(labels_file)
    if not names:
        raise click.UsageError('there are no labels; pass --labels "cat,dog" or --labels-file FILE')
    templates = [*template, *(prompts.read_templates(templates_file) if templates_file is not None else ())]
    others = prompts.BACKGROUND if background else ()
    prompts.checked_classes(names, others)  # before the seconds that a model takes
    prompts.checked_templates(templates or prompts.DEFAULT_TEMPLATES)

    from clip.evaluation.zero_shot import ZeroShotClassifier
    from clip.inference.loading import runtime_of

    network, preprocess = options.load_for_inference(session, model, device, precision)
    runtime = runtime_of(network)
    note(session, f"{model}: {runtime}")
    classifier = ZeroShotClassifier(
        network, names, templates or prompts.DEFAULT_TEMPLATES, preprocess=preprocess, background=others
    )
    write = _json(runtime) if as_json else _csv() if as_csv else _table(classifier.class_names)
    return _classify(session, classifier, pictures, write, top_k, reject_below or 0.0, batch_size, check)


def _classify(
    session: Session,
    classifier: ZeroShotClassifier,
    pictures: tuple[str, ...],
    write: Write,
    top_k: int,
    reject_below: float,
    batch_size: int,
    check: bool,
) -> int:
    """Classifies and prints batch by batch. Gives the exit status."""
    failed = rejected = 0
    with progress(session, "Classifying", lambda: count(pictures)) as bar:

        def fail(message: str) -> None:
            nonlocal failed
            failed += 1
            with bar.paused():
                say(message)

        def on_error(failure: Failure[Any]) -> None:
            fail(str(failure.error))
            bar.advance(1)

        answers = classifier.classify(
            find(pictures, on_problem=fail),
            top_k=top_k,
            reject_below=reject_below,
            batch_size=batch_size,
            on_error=on_error,
        )
        while rows := list(islice(answers, batch_size)):
            with bar.paused():
                write(rows)
                sys.stdout.flush()
            rejected += sum(row.is_rejected for row in rows)
            bar.advance(len(rows))
    if failed:
        say(f"error: {failed} of the pictures could not be classified")
        return FAILED
    return NEGATIVE if check and rejected else DONE


# How answers are printed ----------------------------------------------------------------------------------------------


def _json(runtime: Runtime) -> Write:
    def write(rows: list[Classification]) -> None:
        for row in rows:
            ranked = zip(row.labels, row.probabilities, row.cosines, strict=True)
            value = {
                "file": row.source,
                "label": row.label,
                "rejected": row.is_rejected,
                "background": rounded(row.background),
                "scores": [{"label": label, "probability": rounded(p), "cosine": rounded(c)} for label, p, c in ranked],
                "engine": runtime.engine,
                "precision": runtime.precision,
            }
            print(json_line(value))

    return write


def _csv() -> Write:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "rank", "label", "probability", "cosine", "rejected"])

    def write(rows: list[Classification]) -> None:
        for row in rows:
            for rank, (label, p, c) in enumerate(zip(row.labels, row.probabilities, row.cosines, strict=True), start=1):
                table.writerow([row.source, rank, label, rounded(p), rounded(c), str(row.is_rejected).lower()])

    return write


NONE = "(none)"
"""Shown in the place of the label where a picture is rejected."""


def _cells(row: Classification) -> tuple[str, str, float, str]:
    """File, label, its probability, and the runners-up; of a rejected picture all labels are runners-up."""
    first = 0 if row.is_rejected else 1
    pairs = list(zip(row.labels, row.probabilities, strict=True))[first:]
    runners_up = ", ".join(f"{printable(label)} {p:.1%}" for label, p in pairs)
    return printable(str(row.source)), printable(row.label or NONE), row.probabilities[0], runners_up


def _table(class_names: tuple[str, ...]) -> Write:
    return _terminal_table(class_names) if sys.stdout.isatty() else _plain_table(class_names)


def _plain_table(class_names: tuple[str, ...]) -> Write:
    """Aligned to the names of the first batch; later ones, which are longer, push their line to the right."""
    label_width = min(max(len(printable(name)) for name in (*class_names, NONE)), 40)
    file_width = 0

    def write(rows: list[Classification]) -> None:
        nonlocal file_width
        lines = [_cells(row) for row in rows]
        file_width = file_width or max(len(file) for file, *_ in lines)
        for file, label, p, runners_up in lines:
            print(f"{file:<{file_width}}  {label:<{label_width}}  {p:>6.1%}  {runners_up}".rstrip())

    return write


_BAR_WIDTH = 10
_WIDE_ENOUGH = 64
"""Columns of a terminal that has room for bars and runners-up."""


def _terminal_table(class_names: tuple[str, ...]) -> Write:
    """A table that fits the terminal: the start of a long path is cut off, since its end tells pictures apart."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    is_wide = console.width >= _WIDE_ENOUGH
    longest = max(cell_len(printable(name)) for name in (*class_names, NONE))
    label_width = min(longest, 24, max(console.width // 3, 4))
    shares_width = 6 + (1 + _BAR_WIDTH if is_wide else 0)
    rest = max(console.width - label_width - shares_width - (6 if is_wide else 4), 4)
    file_width = rest // 2 if is_wide else rest
    block = "█" if (console.encoding or "").startswith("utf") else "#"

    def write(rows: list[Classification]) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for width in (file_width, label_width, shares_width):
            table.add_column(width=width, no_wrap=True)
        if is_wide:
            table.add_column(width=rest - file_width, no_wrap=True)
        for row in rows:
            file, label, p, runners_up = _cells(row)
            bar = f" {block * round(p * _BAR_WIDTH)}" if is_wide else ""
            cells = [
                Text(tail(file, file_width)),
                Text(label, style="dim" if row.is_rejected else "bold", overflow="ellipsis"),
                Text(f"{p:>6.1%}{bar}"),
                Text(runners_up, style="dim", overflow="ellipsis"),
            ]
            table.add_row(*cells[: 4 if is_wide else 3])
        console.print(table)

    return write
