"""``clip search``: words or a picture → the pictures of an index that answer best."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip.cli import options
from clip.cli.conditions import conditions_of, filters
from clip.cli.console import Session, json_line, printable, rounded, say, tail

if TYPE_CHECKING:
    from clip.inference.precision import Precision
    from clip.search.index import Hit, Results

__all__ = ["checked_outputs", "command", "index_option", "write_path"]

DONE, NEGATIVE = 0, 3


def index_option(function: options.Function) -> options.Function:
    """``--in``, as ``address``."""
    return click.option(
        "--in",
        "address",
        metavar="INDEX",
        help="The index: a folder, or milvus+http://host:port/name.  [default: $CLIP_INDEX, else one in your home]",
    )(function)


@options.verb(
    "search",
    example="""
clip search a dog on a beach
clip search '"red car" NOT person' -k 50 --html cars.html
clip search sunset --image photo.jpg --after 2024 --min-match 0.5
clip search invoice --path '*/scans/*' -0 | xargs -0 cp -t found/
""",
)
@click.argument("query", nargs=-1, metavar="[QUERY...]")
@click.option(
    "--image", "images", multiple=True, metavar="FILE", help="Look for pictures like this; may be given several times."
)
@index_option
@click.option("-k", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Hits at most.")
@filters
@click.option(
    "--min-match",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Only hits that match with at least this probability; there may be none.",
)
@click.option("--no-group", is_flag=True, help="Show near-duplicates as hits of their own.")
@click.option("--exact", is_flag=True, help="Compare with every picture; a large index may otherwise miss a few.")
@options.json_output("One JSON object a line for each hit.")
@click.option("--paths", is_flag=True, help="Only the paths, one a line.")
@click.option("-0", "--null", is_flag=True, help="Only the paths, each ended by a NUL, for xargs -0.")
@click.option("--html", metavar="FILE", help="Also write a page with the pictures, to be opened in a browser.")
@click.option("--check", is_flag=True, help="Exit with 3 if there are no hits.")
@click.option(
    "--model",
    metavar="NAME",
    help="Another form of the model of the index, such as an exported folder.  [default: that of the index]",
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; by default cuda if there is one.")
@click.option(
    "--precision",
    type=click.Choice(options.PRECISIONS),
    default="auto",
    show_default=True,
    help="Of the matrix products, as in 'clip encode'.",
)
def command(
    session: Session,
    query: tuple[str, ...],
    images: tuple[str, ...],
    address: str | None,
    k: int,
    min_match: float,
    no_group: bool,
    exact: bool,
    as_json: bool,
    paths: bool,
    null: bool,
    html: str | None,
    check: bool,
    model: str | None,
    device: str | None,
    precision: Precision,
    **chosen: Any,
) -> int:
    """Find pictures by words, by a picture, or both.

    QUERY is words, or more: AND, OR, NOT and parentheses, "several words" as one text, +FILE for a picture, and ^2 for
    what weighs more. Options choose among the pictures before the best are taken.

    The match is the probability that a picture shows all that was asked for. Near-duplicates are folded into the best
    of them. An empty answer says why on stderr.
    """
    text = " ".join(query)
    if not text.strip() and not images:
        raise click.UsageError("there is no query; pass words, or --image FILE")
    checked_outputs(as_json, paths, null, html)
    where = conditions_of(**chosen)

    from clip.search.index import Index

    load = functools.partial(options.load_for_inference, session)
    with Index.open(address, model=model, device=device, precision=precision, load=load) as index:
        results = index.search(
            text, images=images, k=k, where=where, min_match=min_match, group=not no_group, exact=exact
        )
        if html is not None:
            _write_page(html, results, index.address)
    if as_json:
        for rank, hit in enumerate(results.hits, start=1):
            print(json_line(_object(rank, hit)))
    elif paths or null:
        for hit in results.hits:
            write_path(hit.path, "\0" if null else "\n")
    elif results.hits:
        (_terminal_table if sys.stdout.isatty() else _plain_table)(results)
    if not session.quiet:
        if results.reason:
            say(results.reason)
        if html is not None:
            say(f"{html}: written; open it in a browser")
    return NEGATIVE if check and not results.hits else DONE


def checked_outputs(as_json: bool, paths: bool, null: bool, html: str | None) -> None:
    """Raises UsageError for options that exclude each other, and for a page that cannot be written."""
    if as_json and (paths or null):
        raise click.UsageError("--json and --paths exclude each other; choose one")
    if html is not None and not Path(html).parent.is_dir():
        raise click.UsageError(f"{html}: the folder {Path(html).parent} does not exist; create it")


def write_path(path: str, end: str) -> None:
    """The path on stdout in its very bytes, which need not be UTF-8."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path + end))


def _write_page(html: str, results: Results, address: str) -> None:
    from clip.html_page import write_atomically
    from clip.search.contact_sheet import search_page

    write_atomically(html, search_page(results, address=address))


# How hits are printed -------------------------------------------------------------------------------------------------


def _object(rank: int, hit: Hit) -> dict[str, Any]:
    row = hit.row
    return {
        "rank": rank,
        "path": hit.path,
        "match": rounded(hit.match),
        "similarity": rounded(hit.similarity),
        "score": rounded(hit.score),
        "alike": list(hit.alike),
        "width": row.width,
        "height": row.height,
        "format": row.format,
        "size_bytes": row.size_bytes,
        "modified_ns": row.modified_ns,
        "metadata": dict(row.metadata),
    }


def _alike(hit: Hit) -> str:
    return f"+{len(hit.alike):,} alike" if hit.alike else ""


def _plain_table(results: Results) -> None:
    """Whole paths, which come last but for what is folded into a hit: for a person, a log, or ``grep``."""
    width = len(str(len(results.hits)))
    for rank, hit in enumerate(results.hits, start=1):
        line = f"{rank:>{width}}  {hit.match:>6.1%}  {hit.similarity:>z6.3f}  {printable(hit.path)}  {_alike(hit)}"
        print(line.rstrip())


_BAR_WIDTH = 10
_WIDE_ENOUGH = 72
"""Columns of a terminal that has room for bars."""


def _terminal_table(results: Results) -> None:
    """A table that fits the terminal: the start of a long path is cut off, since its end tells pictures apart."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    is_wide = console.width >= _WIDE_ENOUGH
    block = "█" if (console.encoding or "").startswith("utf") else "#"
    rank_width = len(str(len(results.hits)))
    match_width = 6 + (1 + _BAR_WIDTH if is_wide else 0)
    alike_width = max(len(_alike(hit)) for hit in results.hits)
    widths = [rank_width, match_width, 10 if is_wide else 6]
    widths.append(max(console.width - sum(widths) - alike_width - 8, 8))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name, width in zip(("", " match", "similarity" if is_wide else "cosine", "picture"), widths, strict=True):
        table.add_column(name, width=width, no_wrap=True)
    table.add_column("", width=alike_width, no_wrap=True)
    for rank, hit in enumerate(results.hits, start=1):
        bar = f" {block * round(hit.match * _BAR_WIDTH)}" if is_wide else ""
        table.add_row(
            Text(f"{rank:>{rank_width}}", style="dim"),
            Text(f"{hit.match:>6.1%}{bar}"),
            Text(f"{hit.similarity:>z6.3f}", style="dim"),
            Text(tail(printable(_near(hit.path)), widths[-1]), style="bold" if hit.match >= 0.5 else ""),
            Text(_alike(hit), style="dim"),
        )
    console.print(table)


def _near(path: str) -> str:
    """The path as one would type it: from this folder on, or from home."""
    for folder, sign in ((os.path.curdir, ""), ("~", "~/")):
        start = os.path.join(os.path.abspath(os.path.expanduser(folder)), "")  # noqa: PTH100, PTH111, PTH118
        if path.startswith(start) and len(path) > len(start):
            return sign + path[len(start) :]
    return path
