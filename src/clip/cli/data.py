"""``clip data``: look at pairs before training on them, and write them as shards."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from clip.cli import options
from clip.cli.console import Session, json_line, printable, progress, say
from clip.errors import ClipError

if TYPE_CHECKING:
    from clip.data.records import Source

__all__ = ["command"]

DONE, FAILED, NEGATIVE = 0, 1, 3

_TABLES = ("csv", "tsv", "jsonl", "parquet")

Function = TypeVar("Function", bound=Callable[..., Any])


class _Group(click.Group):
    """Says what is missing where no command is named, as verbs do without their arguments."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.no_args_is_help = False


@options.verb(
    "data",
    cls=_Group,
    example="""
clip data check pairs.csv --html report.html
clip data pack pairs.csv --output shards/
""",
)
def command(session: Session) -> None:
    """Check pairs before training, and pack them as shards.

    ADDRESS is a folder of pictures with texts of the same name (a.jpg, a.txt), a table (.csv, .tsv, .jsonl, .parquet),
    a folder with a folder for each class, or shards of the webdataset format (pairs-{0000..0099}.tar).
    """


def _source_options(function: Function) -> Function:
    """How to read an address, where looking at it does not tell; the names are those of ``clip train``."""
    added = [
        click.option("--data-kind", metavar="KIND", help="How to read ADDRESS, where looking at it does not tell."),
        click.option("--image-column", metavar="NAME", help="Column of a table with the pictures."),
        click.option("--caption-column", metavar="NAME", help="Column of a table with the captions."),
        click.option(
            *("--template", "templates"),
            multiple=True,
            metavar="TEXT",
            help="Caption with {} for the name of the class; may be given several times.",
        ),
        click.option("--split", metavar="NAME", help="The part of ADDRESS to take, such as train."),
    ]
    for option in reversed(added):
        function = option(function)
    return function


def _open(address: str, *, data_kind: str | None, templates: tuple[str, ...], **columns: str | None) -> Source:
    """The source, with errors in the words of the command line."""
    from clip.data.sources import open_source

    try:
        return open_source(address, kind=data_kind, templates=templates or None, **columns)  # type: ignore[arg-type]
    except ClipError as error:
        message = re.sub(r"\bpass kind=", "pass --data-kind", str(error))
        message = re.sub(r"\bpass (image|caption)_column=", r"pass --\1-column", message)
        raise type(error)(message) from error


@options.verb(
    "check",
    example="""
clip data check pairs.csv
clip data check pairs.csv --against test.csv --html report.html
clip data check 'shards/{00000..00099}.tar' --check --limit 0.02
""",
)
@click.argument("address")
@_source_options
@click.option(
    "--against",
    multiple=True,
    metavar="ADDRESS",
    help="An evaluation set that must not be in the data; its columns are named alike. May be given several times.",
)
@click.option("--against-split", metavar="NAME", help="The part of --against to take, such as test.")
@click.option(
    "--context-length",
    type=click.IntRange(min=3),
    default=77,
    show_default=True,
    metavar="N",
    help="Tokens that the model takes of a caption, with start and end.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="N",
    help="Pairs of one training step, over all processes.",
)
@click.option("--html", metavar="FILE", help="Also write a page with pictures of what was found.")
@options.json_output("Print the whole report as one JSON object.")
@click.option("--check", is_flag=True, help="Exit with status 3 if a finding is above --limit.")
@click.option(
    "--limit",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    metavar="SHARE",
    help="For --check: the largest share of records that may have a problem.",
)
def check(
    session: Session,
    address: str,
    against: tuple[str, ...],
    against_split: str | None,
    context_length: int,
    batch_size: int,
    html: str | None,
    as_json: bool,
    check: bool,
    limit: float,
    **how: Any,
) -> int:
    """Find what is wrong with pairs, and what is there.

    Every picture is decoded and every caption tokenised, once. Found are: records and pictures that cannot be read,
    pictures of one colour, copies and near copies, captions that are empty, too long, repeated, damaged or no text, and
    pictures and captions that an evaluation set has too.
    """
    if html is not None and not Path(html).parent.is_dir():
        raise click.UsageError(f"{html}: the folder {Path(html).parent} does not exist; create it")
    from clip.data.doctor import examine
    from clip.data.doctor_page import report_lines, report_page
    from clip.data.sources import detect_kind
    from clip.html_page import write_atomically

    source = _open(address, **how)
    columns = {name: how[name] for name in ("image_column", "caption_column")}
    others = []
    for other in against:
        shared = columns if detect_kind(other, split=against_split) in _TABLES else {}
        others.append(_open(other, data_kind=None, templates=(), split=against_split, **shared))
    total = len(source) + sum(len(other) for other in others)
    with progress(session, "Examining", lambda: total) as bar:
        report = examine(
            source, context_length=context_length, batch_size=batch_size, against=others, on_progress=bar.advance
        )
    if html is not None:
        write_atomically(html, report_page(report, source, against=others))
    if as_json:
        shares = {"findings": [{**dataclasses.asdict(each), "share": each.share} for each in report.findings]}
        print(json_line({**dataclasses.asdict(report), **shares}))
    else:
        for line in report_lines(report):
            print(printable(line))
    if not session.quiet and html is not None:
        say(f"{html}: written; open it in a browser")
    above = report.above(limit) if check else ()
    for finding in above:
        say(f"{finding.name}: {100 * finding.share:.1f} % is above the limit of {100 * limit:g} %")
    return NEGATIVE if above else DONE


@options.verb(
    "pack",
    example="""
clip data pack pairs.csv --output shards/
clip data pack photos/ --output shards/ --samples-per-shard 1000 --json
""",
)
@click.argument("address")
@click.option("--output", "-o", required=True, metavar="DIR", help="The folder to write shards into.")
@click.option(
    "--samples-per-shard",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Records after which a new shard begins.",
)
@click.option(
    "--shard-megabytes",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Size after which a new shard begins.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the shuffling, for readers that shuffle neighbours only.",
)
@click.option("--no-shuffle", is_flag=True, help="Keep the order of ADDRESS.")
@click.option(
    "--max-failures",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    metavar="SHARE",
    help="Records that may be left out because they cannot be read.",
)
@click.option("--overwrite", is_flag=True, help="Replace the shards that are in the folder already.")
@_source_options
@options.json_output("Print one JSON object about the shards.")
def pack(
    session: Session,
    address: str,
    output: str,
    samples_per_shard: int,
    shard_megabytes: int,
    seed: int,
    no_shuffle: bool,
    max_failures: float,
    overwrite: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Write pairs as shards of the webdataset format.

    They are tar files that this package, webdataset and OpenCLIP read. Pictures keep their bytes; records are shuffled
    once, by --seed. Those that cannot be read are reported and left out, and the exit status is then 1. The same data
    and seed give the same shards.
    """
    from clip.data.packing import pack as write_shards

    source = _open(address, **how)
    done = 0
    with progress(session, "Packing", lambda: len(source)) as bar:

        def on_sample(count: int) -> None:
            nonlocal done
            bar.advance(count - done)
            done = count

        packed = write_shards(
            source,
            output,
            samples_per_shard=samples_per_shard,
            shard_bytes=shard_megabytes << 20,
            seed=None if no_shuffle else seed,
            max_failures=max_failures,
            overwrite=overwrite,
            on_sample=on_sample,
        )
    for failure in packed.failures:
        say(failure.message)
    failed = len(packed.failures)
    if as_json:
        summary = {"output": output, "shards": packed.shards, "samples": packed.samples}
        print(json_line({**summary, "size_bytes": packed.size_bytes, "failed": failed}))
    elif not session.quiet:
        say(
            f"{output}: {packed.samples:,} records in {packed.shards:,} shards, {packed.size_bytes / 1e6:,.1f} MB; "
            f"{failed:,} left out"
        )
    return FAILED if failed else DONE


for subcommand in (check, pack):
    cast(click.Group, command).add_command(subcommand)
