"""An index of pictures: made and changed, and searched by words, by pictures, and by both.

with clip.Index.open("photos.index", model="pocket", create=True) as index:
    index.add("photos/")
    for hit in index.search("a dog on a beach", k=5).hits:
        print(f"{hit.match:.0%}", hit.path)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, IndexNotFoundError
from clip.features import AnyImage
from clip.search.about import About
from clip.search.alike import groups
from clip.search.documents import MODEL_FILE, describe, read_about, read_background, refresh_background
from clip.search.encoder import Encoder, Loader
from clip.search.query import Query, parse
from clip.search.scoring import Background, probes, score
from clip.search.store import Condition, Found, Row, Store, open_store

if TYPE_CHECKING:
    from clip.inference.precision import Precision
    from clip.search.adding import Watcher
    from clip.search.changes import Report
    from clip.search.embedded import Embedded
    from clip.search.sources import Pictures

__all__ = ["DEFAULT_MODEL", "Hit", "Index", "Results", "default_address"]

DEFAULT_MODEL = "pocket"

_CANDIDATES_OF_A_TREE = 1000
"""Nearest pictures to each part of a query with several terms: what is best for all need not be among the first of
any."""


def default_address() -> str:
    """Where the index is if nobody says: ``$CLIP_INDEX``, else ``everyclip/index`` in the user's folder for data."""
    if address := os.environ.get("CLIP_INDEX"):
        return address
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")  # noqa: PTH111, PTH118
    return str(Path(data) / "everyclip" / "index")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A picture that answers a query."""

    path: str
    match: float
    """0…1: the probability that it shows all that was asked for (docs/queries.md)."""
    similarity: float
    """−1…1: its cosine to the first term that is wanted."""
    score: float
    """What hits are ordered by."""
    alike: tuple[str, ...]
    """Paths of near-duplicates that this hit stands for."""
    row: Row


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The answer to a query, best first."""

    query: str
    """As it was understood."""
    hits: tuple[Hit, ...]
    reason: str | None
    """Why there are no hits; None if there are."""
    considered: int
    """Pictures that fulfil the conditions."""
    total: int
    """Pictures in the index."""


class Index:
    """An open index; a context manager. ``Index.open`` makes one.

    Several processes may have one open, to read and to change it.
    """

    def __init__(self, store: Store, about: About, encoder: Encoder) -> None:
        self.store, self.about, self.encoder = store, about, encoder
        self.address = store.address

    @classmethod
    def open(
        cls,
        address: str | os.PathLike[str] | None = None,
        *,
        model: str | None = None,
        create: bool = False,
        device: str | None = None,
        precision: Precision = "auto",
        load: Loader | None = None,
    ) -> Self:
        """The index at an address: a folder, or ``milvus+http://host:port/name``; None is ``default_address()``.

        model: for an index that is there already, only another form of its own model (an exported folder, say); it is
            refused when it is used, if its weights are others. A new index is made for ``pocket`` if none is named.
        create: make the index if there is none.
        device, precision: as in ``load_for_inference``; the model is loaded when it is first needed.
        Raises IndexNotFoundError if there is none, DataError if it cannot be read.
        """
        address = os.fspath(address) if address is not None else default_address()
        how: dict[str, Any] = {"device": device, "precision": precision, "load": load}
        with contextlib.ExitStack() as opened:  # what was opened is closed again if it turns out not to be usable
            try:
                store = opened.enter_context(open_store(address))
                about = read_about(store)
            except IndexNotFoundError:
                about = None
            if about is None:
                if not create:
                    remedy = f"make one with 'clip index FOLDER --into {address}'"
                    raise IndexNotFoundError(f"{address}: no index is there; {remedy}")
                opened.close()
                encoder = Encoder(model or DEFAULT_MODEL, **how)
                store = opened.enter_context(open_store(address, embed_dim=encoder.about.embed_dim))
                about = describe(store, encoder)
            else:
                encoder = Encoder(model or about.model, **how)
            encoder.expect(about, address, seen=store.read_document(MODEL_FILE) or b"")
            opened.pop_all()
        return cls(store, about, encoder)

    @cached_property
    def background(self) -> Background:
        """What the cosines of a query are compared with, as it was when it was first needed."""
        return read_background(self.store)

    def search(
        self,
        query: str = "",
        *,
        images: Sequence[AnyImage] = (),
        k: int = 20,
        where: Sequence[Condition] = (),
        min_match: float = 0.0,
        group: bool = True,
        exact: bool = False,
    ) -> Results:
        """The pictures that answer a query best.

        query: words, or more of the language (docs/queries.md): ``dog AND beach NOT person``, ``+photo.jpg``.
        images: pictures that are looked for together with the query, as files, bytes or pixels.
        k: how many hits at most.
        where: conditions that every hit fulfils. They come first: the k best are taken among the pictures that do.
        min_match: leave out hits with a smaller probability; then there may be none.
        group: fold near-duplicates into the best of them.
        exact: compare with every picture, also where the index is large.
        Raises ConfigError for a query that is none, ImageError for a picture that cannot be read, ConfigError for
        another model than that of the index.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; it must be at least 1")
        if not 0 <= min_match <= 1:
            raise ConfigError(f"min_match is {min_match}; it is a probability, from 0 to 1")
        parsed = parse(query, [image if isinstance(image, str) else f"image {i}" for i, image in enumerate(images, 1)])
        total = self.store.count()
        considered = self.store.count(where) if where else total
        hits: list[Hit] = []
        best: Hit | None = None
        if considered:
            embeddings = self._embeddings(parsed, images)
            candidates = 2 * k if len(parsed.terms) == 1 else max(_CANDIDATES_OF_A_TREE, 10 * k)
            while True:
                ranked = self._ranked(parsed, embeddings, candidates, where, considered, exact)
                best = ranked[0] if ranked else None
                hits = [hit for hit in ranked if hit.match >= min_match]
                is_enough = candidates >= considered or len(hits) < len(ranked)
                hits = _grouped(hits, k) if group else hits
                if len(hits) >= k or is_enough:
                    break
                candidates *= 4  # so many near-duplicates that there are fewer groups than asked for
        reason = None if hits else _reason(total, considered, best, min_match)
        return Results(query=str(parsed), hits=tuple(hits[:k]), reason=reason, considered=considered, total=total)

    def _embeddings(self, query: Query, images: Sequence[AnyImage]) -> NDArray[np.float32]:
        """(T, E), of the terms."""
        named = len(query.images) - len(images)  # those of the language come first
        nothing = np.empty((0, self.about.embed_dim), np.float32)
        pictures = [*query.images[:named], *images]
        return query.arranged(
            self.encoder.texts(query.texts) if query.texts else nothing,
            self.encoder.images(pictures) if pictures else nothing,
        )

    def _ranked(
        self,
        query: Query,
        embeddings: NDArray[np.float32],
        candidates: int,
        where: Sequence[Condition],
        considered: int,
        exact: bool,
    ) -> list[Hit]:
        """The nearest pictures to the parts of the query, in the order of how well they answer the whole."""
        nearest = self.store.nearest(probes(query, embeddings), min(candidates, considered), where, exact=exact)
        ids = {number for neighbours in nearest for number in neighbours.ids.tolist()}  # np.unique imports numpy.ma
        found: Found = self.store.find(sorted(ids))
        cosines = found.embeddings @ embeddings.T
        scored = score(query, cosines, self.background.reference(query, embeddings), considered)
        similarity = cosines[:, query.is_negated.index(False)]
        return [
            Hit(
                path=found.rows[i].path,
                match=float(scored.matches[i]),
                similarity=float(similarity[i]),
                score=float(scored.scores[i]),
                alike=(),
                row=found.rows[i],
            )
            for i in np.lexsort((found.ids, -similarity, -scored.scores)).tolist()
        ]

    def add(
        self,
        *sources: str | os.PathLike[str] | Pictures | Embedded,
        image_column: str | None = None,
        embedding_column: str | None = None,
        is_claimed: bool = False,
        remove_missing: bool = False,
        batch_size: int = 32,
        ray: Mapping[str, Any] | None = None,
        watcher: Watcher | None = None,
    ) -> Report:
        """Brings the index up to date with folders and pictures, tables, shards and files of embeddings; without any,
        with all folders that it knows. Only what is new or has changed is read.

        image_column, embedding_column: of tables; by default they are known by the usual names.
        is_claimed: embeddings whose files do not say what made them are of the model of this index.
        remove_missing: forget the pictures of folders that are not there or are empty; their disk may only be away.
        ray: options of ``RayEngine``, to have its workers embed.
        watcher: told of progress and of each failure. What cannot be read is in the report, and is no exception.
        """
        from clip.search.adding import Opened, add_sources, open_sources

        opened: list[Opened] = []
        for source in sources:
            if isinstance(source, (str, os.PathLike)):
                paths = [os.fspath(source)]
                opened += open_sources(paths, image_column=image_column, embedding_column=embedding_column)
            else:
                opened.append(source)
        with contextlib.ExitStack() as stack:
            engine = None
            if ray is not None:
                from clip.search.ray_engine import RayEngine

                watch = {"on_progress": watcher.advance, "on_failure": watcher.failed} if watcher else {}
                folder = ray.get("work_folder") or self._work_folder()
                options = {**ray, **watch, "work_folder": folder, "batch_size": batch_size}
                engine = stack.enter_context(RayEngine(self.store, self.encoder.name, **options))
            report = add_sources(
                self.store,
                self.about,
                self.encoder,
                opened,
                is_claimed=is_claimed,
                remove_missing=remove_missing,
                batch_size=batch_size,
                ray=engine,
                watcher=watcher,
            )
            with report.seconds.spent("total"), report.seconds.spent("storing"):
                self.refresh()
        return report

    def _work_folder(self) -> str:
        if "://" in self.address:
            raise ConfigError(f"{self.address} is no folder; name one that all workers see, with --work-folder")
        return str(Path(self.address) / "work")

    def remove(self, paths: Collection[str]) -> int:
        """Forgets pictures; their files stay. How many of them there were."""
        return self.store.remove(paths)

    def refresh(self) -> None:
        """Makes later searches fast, and their probabilities right, after many changes. Does nothing after few."""
        self.store.optimize()
        refresh_background(self.store)
        self.__dict__.pop("background", None)

    def __len__(self) -> int:
        return self.store.count()

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _grouped(hits: list[Hit], k: int) -> list[Hit]:
    """The best of each group of near-duplicates, with the others in its ``alike``; k of them, if there are so many."""
    looked_at = 4 * k  # far down the list pictures have little to do with the query, and nobody looks for their copies
    while True:
        found = groups([hit.row for hit in hits[:looked_at]])
        if len(found) >= k or looked_at >= len(hits):
            return [
                dataclasses.replace(hits[first], alike=tuple(hits[place].path for place in others))
                for first, *others in found
            ]
        looked_at *= 4


def _reason(total: int, considered: int, best: Hit | None, min_match: float) -> str:
    if not total:
        return "the index is empty"
    if not considered:
        return f"none of the {total:,} pictures fulfils the conditions"
    assert best is not None
    return (
        f"no picture is likely enough to match: the best, {best.path}, has {best.match:.1%}, below {100 * min_match:g}%"
    )
