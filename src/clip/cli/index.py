"""``clip index``: pictures → an index that can be searched."""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

import click

from clip.cli import options
from clip.cli.console import Progress, Session, json_line, progress, say
from clip.errors import ClipError

if TYPE_CHECKING:
    from clip.inference.precision import Precision
    from clip.search.changes import Failed, Kept, Report
    from clip.search.encoder import Encoder
    from clip.search.index import Index

__all__ = ["command"]

DONE, FAILED = 0, 1


@options.verb(
    "index",
    example="""
clip index ~/Pictures
clip index
clip index photos/ --into photos.index --model ViT-B/32
clip index --re-embed --model ViT-L/14 --into photos.index
""",
)
@click.argument("sources", nargs=-1, metavar="[FOLDER...]")
@click.option(
    "--into",
    metavar="INDEX",
    help="The index: a folder, or milvus+http://host:port/name.  [default: $CLIP_INDEX, else one in your home]",
)
@click.option("--re-embed", is_flag=True, help="Embed all pictures of the index again, by --model.")
@click.option(
    "--remove-missing",
    is_flag=True,
    help="Forget the pictures of a folder that is not there or is empty. Otherwise they are kept: their disk may only "
    "be away.",
)
@click.option("--image-column", metavar="NAME", help="Column of a table with the paths of pictures.")
@click.option("--embedding-column", metavar="NAME", help="Column of a table with embeddings.")
@click.option("--failures", metavar="FILE", help="Also write what could not be indexed, one JSON object a line.")
@click.option(
    "--engine",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="What embeds new pictures: this process, or workers of Ray.",
)
@click.option("--ray-address", metavar="ADDRESS", help="Of a cluster; without it, Ray is started on this machine.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Of Ray: processes that hold the model.")
@click.option(
    "--work-folder",
    metavar="FOLDER",
    help="For Ray: where workers leave what they have done; all machines see it under this path. By default in the "
    "index.",
)
@options.json_output("Print one JSON object about what was done.")
@options.model_options
@options.batch_size(32)
def command(
    session: Session,
    sources: tuple[str, ...],
    into: str | None,
    re_embed: bool,
    remove_missing: bool,
    image_column: str | None,
    embedding_column: str | None,
    failures: str | None,
    engine: str,
    ray_address: str | None,
    workers: int | None,
    work_folder: str | None,
    as_json: bool,
    model: str,
    device: str | None,
    precision: Precision,
    batch_size: int,
) -> int:
    """Make an index of pictures, or bring it up to date.

    FOLDER is searched with the folders inside; without one, all folders that were ever indexed are looked at again.
    Only what is new or has changed is read. Files that were moved are known by their contents, and pictures whose files
    are gone are forgotten.

    Instead of a folder there may be a picture, a table of paths (.csv, .tsv, .jsonl, .parquet), shards
    ('pairs-{000..123}.tar'), or embeddings that were computed elsewhere (.npy or .parquet, as by 'clip encode').

    A file that cannot be read is reported and passed over, and the exit status is then 1. After a crash or kill the
    same command goes on where it was.
    """
    if re_embed and sources:
        raise click.UsageError("--re-embed is for the whole index; leave the folders out")
    if engine != "ray" and (ray_address or workers or work_folder):
        raise click.UsageError("--ray-address, --workers and --work-folder are for --engine ray")
    if re_embed and engine == "ray":
        raise click.UsageError("--re-embed is done by this process; leave --engine out")
    from clip.errors import IndexNotFoundError
    from clip.search.adding import open_sources
    from clip.search.embedded import Embedded
    from clip.search.encoder import Encoder
    from clip.search.index import Index, default_address

    is_default = click.get_current_context().get_parameter_source("model") is click.core.ParameterSource.DEFAULT
    named = None if is_default else model
    how: dict[str, Any] = {"device": device, "precision": precision}
    how["load"] = functools.partial(options.load_for_inference, session)
    address = into or default_address()
    opened = open_sources(sources, image_column=image_column, embedding_column=embedding_column)
    with _Shown(session, address, failures) as shown, contextlib.ExitStack() as stack:
        try:
            index = stack.enter_context(Index.open(address, model=None if re_embed else named, **how))
        except IndexNotFoundError:
            if not sources:
                raise
            origins = [source.origin.model for source in opened if isinstance(source, Embedded) and source.origin]
            new = named or (origins[0] if origins else None)
            index = stack.enter_context(Index.open(address, model=new, create=True, **how))
        if re_embed:
            encoder = Encoder(named or index.about.model, **how)
            report = _re_embedded(index, encoder, remove_missing, batch_size, shown)
            index = stack.enter_context(Index.open(address))
            index.refresh()
        else:
            if named is not None:
                index.about.check_weights(index.encoder.name, index.encoder.fingerprint, address)
            ray = None
            if engine == "ray":
                ray = {"address": ray_address, "workers": workers, "device": device, "precision": precision}
                ray["work_folder"] = work_folder
            report = index.add(
                *opened,
                is_claimed=named is not None,
                remove_missing=remove_missing,
                batch_size=batch_size,
                ray=ray,
                watcher=shown,
            )
        if as_json:
            about = {"index": address, "model": index.about.model, "pictures": len(index)}
            print(json_line({**about, **report.to_dict(), "failures": [one._asdict() for one in report.failed]}))
        elif not session.quiet:
            say(f"{address}: {len(index)} pictures: {_summary(report)}")
        return FAILED if report.failed else DONE


class _Shown:
    """Shows on stderr what an index is doing, and writes to a file what failed if there is to be one.

    A ``clip.search.adding.Watcher``, which would be slow to import for ``clip --help``.
    """

    def __init__(self, session: Session, address: str, failures: str | None) -> None:
        self._session, self._address, self._path = session, address, failures
        self._file: TextIO | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> _Shown:
        if self._path is not None:
            try:
                self._file = open(self._path, "w", encoding="utf-8")  # noqa: PTH123  # closed by __exit__
            except OSError as error:
                raise click.UsageError(f"--failures {self._path}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @contextlib.contextmanager
    def showing(self, what: str, total: int | None) -> Iterator[None]:
        with progress(self._session, what, lambda: total) as self._bar:
            try:
                yield
            finally:
                self._bar = None

    def advance(self, count: int) -> None:
        if self._bar:
            self._bar.advance(count)

    def failed(self, failed: Failed) -> None:
        with self._bar.paused() if self._bar else contextlib.nullcontext():
            say(failed.reason if failed.path in failed.reason else f"{failed.path}: {failed.reason}")
        if self._file is not None:
            self._file.write(json.dumps(failed._asdict()) + "\n")

    def kept(self, kept: Kept) -> None:
        remedy = f"clip index --remove-missing {shlex.quote(kept.root)} --into {shlex.quote(self._address)}"
        say(
            f"{kept.root}: {kept.reason}; its {kept.pictures} pictures stay in the index, as its disk may only be "
            f"away; to forget them: {remedy}"
        )


def _re_embedded(index: Index, encoder: Encoder, remove_missing: bool, batch_size: int, shown: _Shown) -> Report:
    """Changes the model of the index. Raises ClipError if it could not be done for all pictures."""
    from clip.search.re_embedding import re_embed

    how: dict[str, Any] = {"batch_size": batch_size, "on_progress": shown.advance, "on_failure": shown.failed}
    with shown.showing("Embedding", len(index)):
        done = re_embed(index.store, encoder, remove_missing=remove_missing, **how)
    if not done.has_taken_over:
        raise ClipError(
            f"{index.address}: {len(done.report.failed)} of {len(index)} pictures cannot be read, so the index stays "
            f"as it was, of {index.about.model}; make them readable and run this again, which goes on where it was, or "
            "leave them out with --remove-missing"
        )
    return done.report


def _summary(report: Report) -> str:
    counts = report.to_dict()
    names = ("added", "changed", "touched", "renamed", "copied", "removed", "unchanged", "failed")
    parts = [f"{counts[name]} {name}" for name in names if counts[name]]
    seconds = report.seconds
    where = ", ".join(
        f"{getattr(seconds, part) / seconds.total:.0%} {part}"
        for part in ("walking", "decoding", "model", "storing")
        if getattr(seconds, part) >= 0.01 * seconds.total
    )
    return f"{', '.join(parts) or 'no change'}; {seconds.total:.1f} s{f' ({where})' if where else ''}"
