"""The documents of an index: which model it is of, and what its answers are compared with."""

from __future__ import annotations

import json

from clip.errors import DataError
from clip.search.about import About
from clip.search.encoder import Encoder
from clip.search.scoring import Background, calibration_pairs
from clip.search.store import Store

__all__ = ["ABOUT", "MODEL_FILE", "describe", "read_about", "read_background", "refresh_background"]

ABOUT, BACKGROUND, MODEL_FILE = "about", "background", "model-file"
_DRAWN_FROM = "background-drawn-from"
"""Document: how many rows there were when the background's sample was drawn."""

_GROWTH = 1.1
"""A sample is drawn anew when the index has grown by a tenth."""


def describe(store: Store, encoder: Encoder) -> About:
    """Writes what a new index has to say of its model. Encodes the packaged pictures and their captions, once."""
    pairs = calibration_pairs()
    texts = encoder.texts(pairs.texts, truncate=True)  # there are models for a few words
    background = Background.of(encoder.images(pairs.images), texts, pairs.is_match)
    store.write_document(BACKGROUND, background.to_bytes())
    store.write_document(MODEL_FILE, encoder.seen)
    store.write_document(ABOUT, encoder.about.to_bytes())  # the last: an index that has it has all of them
    return encoder.about


def read_about(store: Store) -> About | None:
    """None if the index was begun and never described."""
    document = store.read_document(ABOUT)
    return None if document is None else About.from_bytes(document, store.address)


def read_background(store: Store) -> Background:
    document = store.read_document(BACKGROUND)
    if document is None:
        raise DataError(f"{store.address}: its background is missing; make it anew with 'clip index --re-embed'")
    return Background.from_bytes(document, store.address)


def refresh_background(store: Store) -> None:
    """Draws the pictures that stand for the index anew if it has changed much. Reads all embeddings then."""
    count = store.count()
    drawn_from = json.loads(store.read_document(_DRAWN_FROM) or b"0")
    low, high = sorted((count, drawn_from))
    if high <= _GROWTH * low:
        return
    background = read_background(store).with_sample_of(found.embeddings for found in store.scan())
    store.write_document(BACKGROUND, background.to_bytes())
    store.write_document(_DRAWN_FROM, json.dumps(count).encode())
