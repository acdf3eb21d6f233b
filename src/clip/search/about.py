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
        if other.fingerprint != self.fingerprint:
            raise ConfigError(
                f"{address} holds embeddings of {self.model} (weights {self.fingerprint[:12]}), not of {other.model} "
                f"({other.fingerprint[:12]}); use --model {self.model}, or 'clip index --re-embed --model "
                f"{other.model} --into {address}'"
            )
        if other.preprocess != self.preprocess:
            raise ConfigError(
                f"{address} holds pictures preprocessed as {self.preprocess}, not as {other.preprocess}; re-embed it "
                f"with 'clip index --re-embed --into {address}'"
            )
