"""An index of pictures: made and changed, and searched by words, by pictures, and by both.

with clip.Index.open("photos.index", model="pocket", create=True) as index:
    index.add("photos/")
    for hit in index.search("a dog on a beach", k=5).hits:
        print(f"{hit.match:.0%}", hit.path)
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from clip.errors import IndexNotFoundError
from clip.search.about import About
from clip.search.encoder import Encoder, Loader
from clip.search.store import Store, open_store

if TYPE_CHECKING:
    from clip.inference.precision import Precision

__all__ = ["DEFAULT_MODEL", "Index", "default_address"]

DEFAULT_MODEL = "pocket"

_ABOUT, _SEEN = "about", "model-file"
"""Documents of the store."""


def default_address() -> str:
    """Where the index is if nobody says: ``$CLIP_INDEX``, else ``everyclip/index`` in the user's folder for data."""
    if address := os.environ.get("CLIP_INDEX"):
        return address
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")  # noqa: PTH111, PTH118
    return str(Path(data) / "everyclip" / "index")


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
        try:
            store = open_store(address)
            document = store.read_document(_ABOUT)
        except IndexNotFoundError:
            document = None
        if document is None and not create:
            raise IndexNotFoundError(f"{address}: there is no index; make one with 'clip index FOLDER --into {address}'")
        if document is None:
            encoder = Encoder(model or DEFAULT_MODEL, device=device, precision=precision, load=load)
            about = encoder.about
            store = open_store(address, embed_dim=about.embed_dim)
            store.write_document(_ABOUT, about.to_bytes())
        else:
            about = About.from_bytes(document, address)
            encoder = Encoder(model or about.model, device=device, precision=precision, load=load)
        encoder.expect(about, address, seen=store.read_document(_SEEN) or b"")
        return cls(store, about, encoder)

    def remove(self, paths: Collection[str]) -> int:
        """Forgets pictures; their files stay. How many of them there were."""
        return self.store.remove(paths)

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
