"""``clip duplicates``: an index → its pictures that are the same, or nearly."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from clip.cli import options
from clip.cli.conditions import conditions_of, filters
from clip.cli.console import Session, json_line, printable, progress, say
from clip.cli.search import checked_outputs, index_option, write_path

if TYPE_CHECKING:
    from clip.search.alike import Cluster

__all__ = ["command"]

DONE, NEGATIVE = 0, 3


@options.verb(
    "duplicates",
    example="""
clip duplicates
clip duplicates --html duplicates.html --path '*/2024/*'
clip duplicates --same-file -0 | xargs -0 rm --
""",
)
@index_option
@filters
@click.option("--same-file", is_flag=True, help="Only files that are equal byte for byte.")
@options.json_output("One JSON object a line for each cluster.")
@click.option("--paths", is_flag=True, help="Only the paths of all but the one to keep of each cluster, one a line.")
@click.option("-0", "--null", is_flag=True, help="The same paths, each ended by a NUL, for xargs -0.")
@click.option("--html", metavar="FILE", help="Also write a page with the pictures, to be opened in a browser.")
@click.option("--check", is_flag=True, help="Exit with 3 if there are any.")
def command(
    session: Session,
    address: str | None,
    same_file: bool,
    as_json: bool,
    paths: bool,
    null: bool,
    html: str | None,
    check: bool,
    **chosen: Any,
) -> int:
    """List pictures that are the same, or nearly.

    Clusters come with the largest first; in each, the picture to keep comes first: that with the most pixels, and of
    several the oldest. Nothing is deleted.

    Nearly the same are pictures that were compressed again, resized, or made a little brighter. Look at them before
    you delete any: a light that is on and one that is off look nearly the same, too.
    """
    checked_outputs(as_json, paths, null, html)
    where = conditions_of(**chosen)

    from clip.html_page import write_atomically
    from clip.search.alike import clusters
    from clip.search.contact_sheet import duplicates_page, size_text
    from clip.search.index import Index

    write = _write_json if as_json else functools.partial(_write_paths, null) if paths or null else _write_lines
    count = others = freed = 0

    def written(found: Iterable[Cluster]) -> Iterator[Cluster]:
        nonlocal count, others, freed
        for cluster in found:
            write(cluster)
            count += 1
            others += len(cluster.others)
            freed += cluster.freed_bytes
            yield cluster

    with Index.open(address) as index:
        with progress(session, "Comparing", lambda: index.store.count(where)) as bar:
            found = clusters(index.store, where, same_file=same_file, on_progress=bar.advance)
        if html is not None:
            write_atomically(html, duplicates_page(written(found), address=index.address))
        else:
            deque(written(found), maxlen=0)
        if not session.quiet:
            clusters_found = f"{count:,} {'cluster' if count == 1 else 'clusters'}"
            beside = f"{clusters_found}, {others:,} beside the pictures to keep, with {size_text(freed)}"
            say(f"{index.address}: {beside if count else 'no two pictures are alike'}")
            if html is not None:
                say(f"{html}: written; open it in a browser")
    return NEGATIVE if check and count else DONE


# How clusters are printed ---------------------------------------------------------------------------------------------


def _write_json(cluster: Cluster) -> None:
    value = {
        "keep": cluster.keep.path,
        "others": [row.path for row in cluster.others],
        "same_file": cluster.is_same_file,
        "freed_bytes": cluster.freed_bytes,
    }
    print(json_line(value))


def _write_paths(null: bool, cluster: Cluster) -> None:
    for row in cluster.others:
        write_path(row.path, "\0" if null else "\n")


def _write_lines(cluster: Cluster) -> None:
    from clip.search.contact_sheet import facts, size_text

    kind = "the same file" if cluster.is_same_file else "nearly the same"
    print(f"{1 + len(cluster.others):,} pictures, {kind}; to keep one frees {size_text(cluster.freed_bytes)}")
    for row in (cluster.keep, *cluster.others):
        mark = "keep" if row is cluster.keep else ""
        print(f"  {mark:<4}  {printable(row.path)}  {', '.join(facts(row))}".rstrip())
