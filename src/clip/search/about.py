"""What an index knows of the model that its embeddings come from; a query of another model is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from clip.errors import ConfigError, DataError

__all__ = ["About"]

_FORMAT, _VERSION = "everyclip-index", 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """A document of the store, written once when the index is made."""

    model: str
    """What ``load_for_inference`` loads it by: a name, or the absolute path of a file or folder."""
    fingerprint: str
    """Of the weights, however they are run."""
    embed_dim: int
    preprocess: dict[str, Any]
    """``Preprocess.to_dict``."""
    engine: str
    precision: str
    """Of the embeddings of pictures. Queries may be computed in another: they differ less than two pictures do."""

    def to_bytes(self) -> bytes:
        document = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        return json.dumps(document, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, address: str) -> About:
        """Raises DataError for what is no such document, or one of a later version."""
        try:
            document = json.loads(data)
            kind, version = document.pop("format"), document.pop("version")
            if (kind, version) != (_FORMAT, _VERSION):
                raise DataError(f"{address}: is {kind} version {version}; this everyclip reads {_FORMAT} {_VERSION}")
            return cls(**document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{address}: its description cannot be read ({error}); make the index anew") from error

    def check(self, other: About, address: str) -> None:
        """Raises ConfigError if embeddings of ``other`` do not belong into this index."""
        self.check_weights(other.model, other.fingerprint, address)
        self.check_preprocess(other.preprocess, address)

    def check_weights(self, model: str, fingerprint: str, address: str) -> None:
        if fingerprint != self.fingerprint:
            own, theirs = f"weights {self.fingerprint[:12]}", f"weights {fingerprint[:12]}"
            remedy = f"to change its model, run 'clip index --re-embed --model {model} --into {address}'"
            if model != self.model:
                remedy = f"use --model {self.model}; {remedy}"
            raise ConfigError(
                f"{address} holds embeddings of {self.model} ({own}), not of {model} ({theirs}); {remedy}"
            )

    def check_preprocess(self, preprocess: dict[str, Any], address: str) -> None:
        own = json.loads(json.dumps(self.preprocess))  # tuples are lists in a document
        theirs = json.loads(json.dumps(preprocess))
        if own != theirs:
            differing = ", ".join(sorted(key for key in {*own, *theirs} if own.get(key) != theirs.get(key)))
            raise ConfigError(
                f"{address} holds pictures that were preprocessed in another way ({differing}); "
                f"run 'clip index --re-embed --into {address}'"
            )
