"""An index filled by many processes, on one machine or a cluster: ``clip index --engine ray``. Needs the extra ``ray``.

    with RayEngine(store, model, work_folder="/shared/work", address="auto") as engine:
        report = engine.add(source.parts(on_problem, seen))

What travels through Ray is only which pictures to read (``Part``) and what became of them. Each worker holds the model,
reads its pictures itself, and leaves their rows and embeddings as one file in the work folder, which gets its final
name when it is whole. The driver stores the files as they come, alone, and removes them.

So whoever dies, nothing is lost, and nothing is there twice: a worker's part is done again by another; a driver's files
are found by the next one, which stores them before it asks what is left to do; and a store holds a path once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pickle
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from clip.data.parquet import arrow_library
from clip.embedding_files import FORMAT, VERSION
from clip.errors import ClipError, ConfigError, DataError, MissingDependencyError
from clip.search.about import About
from clip.search.changes import Failed, Report
from clip.search.documents import ABOUT, read_about
from clip.search.embedded import open_embedded
from clip.search.encoder import Encoder
from clip.search.indexing import add_items
from clip.search.sources import Part
from clip.search.store import Known, Row, Store

if TYPE_CHECKING:
    from clip.inference.precision import Precision

__all__ = ["RayEngine"]

logger = logging.getLogger(__name__)

_ROUND_PARTS = 2048
"""Parts that Ray is given at once, about a million pictures: what bounds the driver's memory. The workers, and so the
model, are started anew for each round."""

_OBJECT_STORE_BYTES = 1 << 28
"""Shared memory of a local Ray. No picture passes through it."""


class RayEngine:
    """Workers that embed parts of sources, and this process, which stores what they have done. A context manager.

    store: an index that is described (``documents.describe``).
    model: what ``load_for_inference`` takes, on every machine of the cluster; must be the model of the index.
    work_folder: where workers leave what they have done; all machines must see it under this path.
    address: of a cluster, as ``ray.init`` takes it: "auto" on one of its machines; None starts Ray here and ends it.
    workers: processes that hold the model; None is one for each GPU of the cluster, or else for each processor.
    device, precision: as in ``load_for_inference``, where the workers are.
    Raises ConfigError if another process has the work folder, MissingDependencyError without Ray.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        *,
        work_folder: str | os.PathLike[str],
        address: str | None = None,
        workers: int | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        batch_size: int = 32,
        on_progress: Callable[[int], None] = lambda count: None,
        on_failure: Callable[[Failed], None] = lambda failed: None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"workers is {workers}; it must be at least 1")
        about = read_about(store)
        if about is None:
            raise DataError(f"{store.address}: does not say what model it is for; make the index anew")
        arrow_library()
        self._ray = _ray()
        self._store, self._about = store, about
        self._address, self._workers = address, workers
        self._on_progress, self._on_failure = on_progress, on_failure
        # A folder may serve several indexes, and what was embedded for another must not come into this one.
        whose = hashlib.blake2b(f"{store.address}\n".encode() + about.to_bytes(), digest_size=8).hexdigest()
        self._folder = Path(work_folder).absolute() / f"ray-{whose}"
        self._options = {
            "folder": str(self._folder), "model": model, "about": about, "index": store.address,
            "device": device, "precision": precision, "batch_size": batch_size,
        }  # fmt: skip
        self._told: set[Failed] = set()
        self.report = Report()
        """What was done so far, with what an earlier, ended driver had left."""

    def __enter__(self) -> Self:
        import filelock

        with contextlib.ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self._folder / "lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise ConfigError(
                    f"another process is embedding for {self._store.address}; wait until it has ended"
                ) from error
            stack.callback(self._leave)
            stack.callback(lock.release)
            for file in sorted(self._folder.glob("*.parquet")):
                self._import(file)
            self._ends = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    def add(self, parts: Iterable[Part]) -> Report:
        """Embeds and stores the pictures of some parts. Ray is started for the first of them.

        parts: read after what an earlier driver left is stored, so that they can leave it out; a generator, therefore.
        Raises ClipError, with Ray's reason, if the workers cannot do their work.
        """
        report, self.report = self.report, Report()
        stream = iter(parts)
        with self.report.seconds.spent("total"):
            while round_ := list(itertools.islice(stream, _ROUND_PARTS)):
                for done in self._done(round_):
                    self._count(done)
                # A worker that died between writing its file and saying so: its part was done again, and is stored.
                for file in self._folder.glob("*.parquet"):
                    file.unlink()
        report.include(self.report)
        self.report = report
        return report

    def _done(self, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
        """What became of each part, in the order in which they are done."""
        self._start()
        ray = self._ray
        workers, resources = self._resources(len(parts))
        items = [{"part": ray.cloudpickle.dumps(part)} for part in parts]
        try:
            done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                _Worker,
                fn_constructor_kwargs={**self._options, "threads": max(int(resources["num_cpus"]), 1)},
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                **resources,
            )
            for row in done.iter_rows():
                outcome = json.loads(row["done"])
                if "error" in outcome:
                    raise ClipError(f"a worker of Ray: {outcome['error']}")
                yield outcome
        except ray.exceptions.RayError as error:
            raise ClipError(f"the workers of Ray failed: {_reason(error)}") from error

    def _start(self) -> None:
        """Joins the cluster, or starts one of this machine alone.

        That one ends with this process. If it is killed, workers end within seconds, and two idle agents of Ray after
        the minute in which they try to reach the others.
        """
        ray = self._ray
        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._address is None:
            # Not in $TMPDIR, if that is long: the path of a socket has 107 bytes at most, and Ray adds some 60.
            folder = tempfile.mkdtemp(prefix="clip-ray-", dir=None if len(tempfile.gettempdir()) < 24 else "/tmp")
            self._ends.callback(shutil.rmtree, folder, ignore_errors=True)
            quiet |= {"num_cpus": self._workers, "include_dashboard": False, "_temp_dir": folder}
            quiet |= {"object_store_memory": _OBJECT_STORE_BYTES}
        self._ends.callback(ray.shutdown)
        ray.init(address=self._address or "local", **quiet)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def _resources(self, parts: int) -> tuple[int, dict[str, float]]:
        """How many workers, and what each of them gets."""
        total = self._ray.cluster_resources()
        processors, gpus = max(int(total.get("CPU", 1)), 1), int(total.get("GPU", 0))
        if self._options["device"] == "cpu":
            gpus = 0
        workers = self._workers or gpus or processors
        resources = {"num_cpus": float(max(processors // workers, 1))}
        if gpus:
            resources["num_gpus"] = min(gpus / workers, 1.0)
        return min(workers, parts), resources

    def _count(self, done: dict[str, Any]) -> None:
        for path, reason in done["failed"]:
            failed = Failed(path, reason)
            if failed not in self._told:  # a damaged shard is one to each of its parts
                self._told.add(failed)
                self.report.failed.append(failed)
                self._on_failure(failed)
        self.report.embedded += done["embedded"]
        if done["file"]:
            self._import(self._folder / done["file"])
        self._on_progress(len(done["failed"]))

    def _import(self, file: Path) -> None:
        """Stores a worker's file, and removes it. One that is not there any more was stored before."""
        if not file.exists():
            return
        embedded = open_embedded(file.name, [str(file)], None, None)
        if embedded is None:
            raise DataError(f"{file}: is no file of embeddings; remove it")
        embedded.check(self._about, self._store.address, is_claimed=False)

        def on_problem(error: ClipError) -> None:
            raise error

        with self.report.seconds.spent("storing"):
            for batch in embedded.batches(on_problem):
                self._store.add(batch.rows, batch.embeddings)
                self.report.added += len(batch.rows)
                self._on_progress(len(batch.rows))
        file.unlink()

    def _leave(self) -> None:
        """Removes the work folder, unless something is left in it."""
        for file in self._folder.glob("*.part"):
            file.unlink(missing_ok=True)
        if not any(self._folder.glob("*.parquet")):
            shutil.rmtree(self._folder, ignore_errors=True)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers
    os.environ.setdefault("RAY_worker_niceness", "0")  # at its 15 a busy machine would hardly let them run
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is told by exceptions
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError("--engine ray needs Ray; run: pip install 'everyclip[ray,parquet]'") from error
    return ray


def _reason(error: BaseException) -> str:
    """What a worker raised: the last line of the first traceback; what Ray says of it comes after."""
    first, _, _ = str(error).partition("\n\nThe above exception was")
    return first.strip().rpartition("\n")[2]


# Workers --------------------------------------------------------------------------------------------------------------


class _Worker:
    """An actor of Ray: the model, and what it does with a part."""

    def __init__(
        self, *, folder: str, model: str, about: About, index: str, device: str | None, precision: Precision,
        batch_size: int, threads: int,
    ) -> None:  # fmt: skip
        self._folder, self._about = Path(folder), about
        self._batch_size, self._threads = batch_size, threads
        self._encoder = Encoder(model, device=device, precision=precision)
        self._encoder.expect(about, index)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        try:
            return {"done": [json.dumps(self._do(pickle.loads(part))) for part in batch["part"]]}
        except ClipError as error:  # the model is not there, or another one: the driver says it better than Ray would
            return {"done": [json.dumps({"error": str(error)})]}

    def _do(self, part: Part) -> dict[str, Any]:
        problems: list[tuple[str, str]] = []

        def on_problem(error: ClipError) -> None:
            place, _, reason = str(error).partition(": ")
            problems.append((place, reason))

        file = _PartFile(self._about)
        report = add_items(
            cast("Store", file),
            self._encoder,
            part.items(on_problem),
            batch_size=self._batch_size,
            workers=self._threads,
        )
        name = file.write(self._folder) if file.rows else ""
        return {"file": name, "embedded": report.embedded, "failed": [*problems, *report.failed]}


class _PartFile:
    """What ``add_items`` uses of a store; all it is told comes into one file."""

    address = "a part"

    def __init__(self, about: About) -> None:
        self._about = about
        self.rows: list[Row] = []
        self._embeddings: list[NDArray[np.float32]] = []

    def read_document(self, name: str) -> bytes | None:
        return self._about.to_bytes() if name == ABOUT else None

    def known(self, under: str | None = None) -> Iterator[Known]:
        return iter(())

    def add(self, rows: Sequence[Row], embeddings: NDArray[np.float32]) -> None:
        self.rows += rows
        self._embeddings.append(embeddings)

    def write(self, folder: Path) -> str:
        """The name of a file like those of ``clip encode``, with all that a row has; whole, or not there."""
        arrow = arrow_library()
        embeddings = np.concatenate(self._embeddings)
        about = dataclasses.asdict(self._about)
        columns = {
            # Bytes, because the name of a file need not be UTF-8.
            "source": arrow.array([os.fsencode(row.path) for row in self.rows], arrow.binary()),
            "embedding": arrow.FixedSizeListArray.from_arrays(arrow.array(embeddings.reshape(-1)), embeddings.shape[1]),
            "metadata": arrow.array([json.dumps(dict(row.metadata)) for row in self.rows], arrow.string()),
        }
        types = {"size_bytes": arrow.int64(), "modified_ns": arrow.int64(), "width": arrow.int64()}
        types |= {"height": arrow.int64(), "format": arrow.string()}
        types |= {"digest": arrow.binary(), "signature": arrow.binary()}
        columns |= {
            name: arrow.array([getattr(row, name) for row in self.rows], type_) for name, type_ in types.items()
        }
        table = arrow.table(columns).replace_schema_metadata(
            {FORMAT: json.dumps({"format": FORMAT, "version": VERSION, **about})}
        )
        name = f"{uuid.uuid4().hex}.parquet"
        part = folder / f"{name}.part"
        arrow.parquet.write_table(table, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(folder / name)
        return name
