"""``clip index``: pictures → an index that can be searched."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import click

from clip.cli import options
from clip.cli.console import Progress, Session, json_line, note, progress, say
from clip.errors import ClipError, ConfigError

if TYPE_CHECKING:
    from clip.inference.precision import Precision
    from clip.search.changes import Failed, Report
    from clip.search.embedded import Embedded
    from clip.search.index import Index
    from clip.search.ray_engine import RayEngine
    from clip.search.sources import Pictures

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
    from clip.search.index import Index, default_address

    is_default = click.get_current_context().get_parameter_source("model") is click.core.ParameterSource.DEFAULT
    named = None if is_default else model
    how: dict[str, Any] = {"device": device, "precision": precision}
    how["load"] = functools.partial(options.load_for_inference, session)
    address = into or default_address()
    with _Failures(failures) as failed, contextlib.ExitStack() as stack:
        index = stack.enter_context(Index.open(address, model=None if re_embed else named, create=bool(sources), **how))
        job = _Job(session, index, failed, batch_size)
        if re_embed:
            job.re_embed(named or index.about.model, how, remove_missing)
            index = stack.enter_context(Index.open(address))
        else:
            if named is not None:
                index.about.check_weights(index.encoder.name, index.encoder.fingerprint, address)
            if engine == "ray":
                ray = {"address": ray_address, "workers": workers, "device": device, "precision": precision}
                job.use_ray(stack, work_folder, ray)
            job.update(sources, remove_missing, (image_column, embedding_column), is_claimed=named is not None)
        report = job.report
        if as_json:
            about = {"index": address, "model": index.about.model, "pictures": len(index)}
            print(json_line({**about, **report.to_dict(), "failures": [one._asdict() for one in report.failed]}))
        elif not session.quiet:
            say(f"{address}: {len(index)} pictures: {_summary(report)}")
        return FAILED if report.failed else DONE


class _Failures:
    """Tells of what could not be indexed, and writes it to a file if there is to be one."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self.bar: Progress | None = None

    def __enter__(self) -> _Failures:
        if self._path is not None:
            try:
                self._file = open(self._path, "w", encoding="utf-8")  # noqa: PTH123  # closed by __exit__
            except OSError as error:
                raise click.UsageError(f"--failures {self._path}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __call__(self, failed: Failed) -> None:
        with self.bar.paused() if self.bar else contextlib.nullcontext():
            say(failed.reason if failed.path in failed.reason else f"{failed.path}: {failed.reason}")
        if self._file is not None:
            self._file.write(json.dumps(failed._asdict()) + "\n")


class _Job:
    """What is done to one index by one command."""

    def __init__(self, session: Session, index: Index, failed: _Failures, batch_size: int) -> None:
        from clip.search.changes import Report

        self._session, self._index, self._failed, self._batch_size = session, index, failed, batch_size
        self.report = Report()
        self._ray: RayEngine | None = None
        self._bar: Progress | None = None

    def use_ray(self, stack: contextlib.ExitStack, work_folder: str | None, how: dict[str, Any]) -> None:
        """Has workers of Ray embed what is new. First stores what they did for an earlier, ended command."""
        from clip.search.ray_engine import RayEngine

        if work_folder is None and not os.path.isdir(self._index.address):  # noqa: PTH112
            raise click.UsageError(f"{self._index.address} is no folder; name one with --work-folder")
        self._ray = stack.enter_context(
            RayEngine(
                self._index.store,
                self._index.encoder.name,
                work_folder=work_folder or os.path.join(self._index.address, "work"),  # noqa: PTH118
                batch_size=self._batch_size,
                on_progress=self._advance,
                on_failure=self._failed,
                **how,
            )
        )

    def update(
        self, sources: Sequence[str], remove_missing: bool, columns: tuple[str | None, str | None], *, is_claimed: bool
    ) -> None:
        """Brings the index up to date with folders, files, tables, shards and files of embeddings."""
        roots = []
        for source in sources:
            if os.path.isdir(source):  # noqa: PTH112
                roots.append(source)
                continue
            from clip.search.embedded import Embedded
            from clip.search.sources import open_source

            opened = open_source(source, image_column=columns[0], embedding_column=columns[1])
            if opened is None:
                roots.append(source)
            elif isinstance(opened, Embedded):
                self._import(opened, is_claimed=is_claimed)
            else:
                self._add(opened)
        if roots or not sources:
            self._update_folders(roots or None, remove_missing)
        if self._ray:
            self.report.include(self._ray.report)
        with self.report.seconds.spent("total"), self.report.seconds.spent("storing"):
            self._index.refresh()

    def _update_folders(self, roots: Sequence[str] | None, remove_missing: bool) -> None:
        from clip.search.changes import find_changes, read_roots
        from clip.search.indexing import apply_changes, set_apart

        if roots is None and not read_roots(self._index.store):
            raise ConfigError(f"{self._index.address}: no folder was indexed yet; name one: clip index FOLDER")
        note(self._session, "looking for changes")
        changes = find_changes(self._index.store, roots, remove_missing=remove_missing)
        for failed in changes.report.failed:
            self._failed(failed)
        for kept in changes.report.kept:
            say(
                f"{kept.root}: {kept.reason}; its {kept.pictures} pictures stay in the index, as its disk may only "
                f"be away; to forget them: clip index --remove-missing {shlex.quote(kept.root)} "
                f"--into {shlex.quote(self._index.address)}"
            )
        store, encoder = self._index.store, self._index.encoder
        with self._showing("Indexing", len(changes.pending)):
            if self._ray:
                changes, parts = set_apart(store, changes)
                self._ray.add(parts)
            self.report.include(apply_changes(store, encoder, changes, **self._how()))

    def _add(self, pictures: Pictures) -> None:
        from clip.search.indexing import add_items
        from clip.search.seen import Seen

        problems: list[Failed] = []
        source = self._on_problem(problems), functools.partial(Seen, self._index.store)
        with self._showing(f"Indexing {pictures.name}", pictures.total()):
            if self._ray:
                self._ray.add(pictures.parts(*source))
            else:
                items = pictures.items(*source)
                self.report.include(add_items(self._index.store, self._index.encoder, items, **self._how()))
        self.report.failed += problems

    def _import(self, embedded: Embedded, *, is_claimed: bool) -> None:
        from clip.search.embedded import import_embeddings

        embedded.check(self._index.about, self._index.address, is_claimed=is_claimed)
        with self._showing(f"Importing {embedded.name}", embedded.total()):
            on_problem = self._on_problem(self.report.failed)
            done = import_embeddings(self._index.store, embedded, on_problem=on_problem, on_batch=self._advance)
        self.report.added += done.rows

    def re_embed(self, model: str, how: dict[str, Any], remove_missing: bool) -> None:
        """Changes the model of the index. Raises ClipError if it could not be done for all pictures."""
        from clip.search.encoder import Encoder
        from clip.search.re_embedding import re_embed

        with self._showing("Embedding", len(self._index)):
            encoder = Encoder(model, **how)
            done = re_embed(self._index.store, encoder, remove_missing=remove_missing, **self._how())
        if not done.has_taken_over:
            raise ClipError(
                f"{self._index.address}: {len(done.report.failed)} of {len(self._index)} pictures cannot be read, so "
                f"the index stays as it was, of {self._index.about.model}; make them readable and run this again, "
                "which goes on where it was, or leave them out with --remove-missing"
            )
        self.report.include(done.report)

    @contextlib.contextmanager
    def _showing(self, what: str, total: int | None) -> Iterator[None]:
        with progress(self._session, what, lambda: total) as bar:
            self._bar = self._failed.bar = bar
            try:
                yield
            finally:
                self._bar = self._failed.bar = None

    def _advance(self, count: int) -> None:
        if self._bar:
            self._bar.advance(count)

    def _how(self) -> dict[str, Any]:
        return {"batch_size": self._batch_size, "on_progress": self._advance, "on_failure": self._failed}

    def _on_problem(self, problems: list[Failed]) -> Callable[[ClipError], None]:
        """For the records of a source, whose errors name them."""
        from clip.search.changes import Failed

        def on_problem(error: ClipError) -> None:
            place, _, reason = str(error).partition(": ")
            problems.append(Failed(place, reason))
            self._failed(problems[-1])

        return on_problem


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
