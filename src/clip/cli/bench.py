"""``clip bench``: how fast models are on this machine, and what each precision costs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from clip.cli import options
from clip.cli.console import Session, json_line, printable, progress, say
from clip.cli.pictures import find
from clip.errors import ConfigError

if TYPE_CHECKING:
    from clip.bench.measure import Measurement, Probe, Report

__all__ = ["command"]

Column = tuple[str, Callable[["Measurement"], str]]


@options.verb(
    "bench",
    example="""
clip bench pocket
clip bench ViT-B/32 exported/vit-b-32-int8 --precision fp32,bf16 --batch-size 1,32
clip bench --random ViT-L/14 --json
clip bench pocket --pictures photos/ --labels "cat,dog,bird"
""",
)
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@click.option("--random", multiple=True, metavar="NAME", help="An architecture, such as ViT-B/32, with random weights.")
@click.option("--batch-size", default="1,8,32", show_default=True, metavar="N,…", help="Items in one call.")
@click.option(
    "--precision", default="fp32,auto", show_default=True, metavar="P,…", help="Of auto, fp32, bf16 and int8."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Turns of each rate."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    show_default=True,
    metavar="S",
    help="Length of each turn.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Processors to use; by default all that are allowed."
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; by default cuda if there is one.")
@click.option(
    "--pictures", multiple=True, metavar="FOLDER", help="Compare precisions on these, not on the package's pictures."
)
@click.option("--labels", metavar="A,B,…", help="What is to be told apart in --pictures.")
@click.option("--plot", metavar="FILE", help="Write a figure: .png, .svg or .pdf (extra plots).")
@options.json_output("Print one JSON object with every figure of every round.")
def command(
    session: Session,
    models: tuple[str, ...],
    random: tuple[str, ...],
    batch_size: str,
    precision: str,
    rounds: int,
    seconds: float,
    threads: int | None,
    device: str | None,
    pictures: tuple[str, ...],
    labels: str | None,
    plot: str | None,
    as_json: bool,
) -> None:
    """Measure how fast models are, and what precisions cost.

    MODEL is a name from 'clip models', a checkpoint, or a folder that 'clip export' wrote; with neither MODEL nor
    --random it is pocket. Each model in each precision is a process of its own, all are in memory at once, and they
    take turns. Speeds are of one tower on tensors in memory, texts are captions of 7 to 21 tokens; "of peak" is the
    share of the fastest matrix product, and × the ratio to the first line of the same batch size.

    The second table is about exactness: how far embeddings are from those of the exact model in fp32, on the pictures
    and captions of the package or on --pictures.

    Needs a machine that does nothing else.
    """
    from clip.bench.measure import measure

    if plot is not None:
        _check_plot(plot)
    for name in models:
        options.download(session, name)
    with progress(session, "Measuring", lambda: rounds) as bar:
        report = measure(
            models or (() if random else ("pocket",)),
            random=random,
            batch_sizes=_numbers(batch_size),
            precisions=_parts(precision),
            rounds=rounds,
            seconds=seconds,
            threads=threads,
            device=device,
            probe=_probe(pictures, labels),
            on_round=lambda: bar.advance(1),
        )
    if as_json:
        print(json_line(report.to_dict()))
    else:
        _print_tables(report)
    if not session.quiet:
        for note in report.notes:
            say(note)
    if plot is not None:
        from clip.bench.plots import write_plot

        write_plot(report, plot)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _parts(text)]
    except ValueError as error:
        raise click.UsageError(f"--batch-size {text!r} is no list of numbers; write it as 1,8,32") from error


def _probe(pictures: Sequence[str], labels: str | None) -> Probe | None:
    from clip.bench.measure import Probe

    if not pictures:
        if labels is not None:
            raise click.UsageError("--labels are for --pictures; name a folder of them")
        return None
    return Probe.of_files(list(find(pictures, on_problem=say)), _parts(labels or ""))


def _check_plot(path: str) -> None:
    """Before minutes are spent on measuring."""
    from clip.bench.plots import FORMATS
    from clip.html_page import new_figure

    if not path.lower().endswith(FORMATS):
        raise ConfigError(f"--plot {path!r} must end in .{', .'.join(FORMATS)}")
    new_figure()


# Tables ---------------------------------------------------------------------------------------------------------------


def _print_tables(report: Report) -> None:
    peaks = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in report.ceilings.items() if rate)
    lines = (str(report.machine), f"fastest matrix products, GFLOP/s: {peaks or 'unknown'}")
    print("\n".join(printable(line) for line in lines) + "\n")
    _print_table(_SPEEDS, report.measurements)
    compared = {(m.model, m.engine, m.precision): m for m in report.measurements if m.fidelity is not None}
    if compared:
        fidelity = next(iter(compared.values())).fidelity
        assert fidelity is not None
        print(f"\nto the exact model, on {fidelity.images} pictures and {fidelity.texts} texts:\n")
        _print_table(_COSTS, list(compared.values()))


def _print_table(columns: Sequence[Column], measurements: Sequence[Measurement]) -> None:
    rows = [[printable(cell(measurement)) for _, cell in columns] for measurement in measurements]
    names = [name for name, _ in columns]
    if sys.stdout.isatty():
        _print_rich(names, rows)
        return
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for row in (names, *rows):
        cells = (
            f"{cell:{'<' if i in _LEFT else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def _print_rich(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for i, name in enumerate(names):
        table.add_column(Text(name), justify="left" if i in _LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout, highlight=False, markup=False, emoji=False).print(table)


_LEFT = (0, 1, 2)
_NAMES: list[Column] = [("model", lambda m: m.model), ("engine", lambda m: m.engine), ("in", lambda m: m.precision)]
_SPEEDS: list[Column] = [
    *_NAMES,
    ("batch", lambda m: str(m.batch_size)),
    ("images/s", lambda m: _rate(m.images.per_second)),
    ("ms", lambda m: _rate(m.images.milliseconds)),
    ("×", lambda m: f"{m.images.ratio:.2f}"),
    ("of peak", lambda m: _share(m.images.ceiling_share)),
    ("texts/s", lambda m: _rate(m.texts.per_second)),
    ("ms", lambda m: _rate(m.texts.milliseconds)),
    ("×", lambda m: f"{m.texts.ratio:.2f}"),
    ("MB", lambda m: f"{m.memory_bytes / 1e6:,.0f}"),
]
_COSTS: list[Column] = [
    *_NAMES,
    ("image cosine", lambda m: _cosine(_of(m).image_cosine)),
    ("centred", lambda m: _cosine(_of(m).image_centred_cosine)),
    ("text cosine", lambda m: _cosine(_of(m).text_cosine)),
    ("centred", lambda m: _cosine(_of(m).text_centred_cosine)),
    ("similarity", lambda m: f"{_of(m).similarity_change:.1e}"),
    ("answers", lambda m: f"{_of(m).changed_answers_share:.1%}"),
]


def _of(measurement: Measurement) -> Any:
    assert measurement.fidelity is not None
    return measurement.fidelity


def _cosine(value: float | None) -> str:
    from clip.bench.measure import cosine_text

    return cosine_text(value)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
