"""Makes ``pictures.npz``: embeddings of 619 real pictures with the words that are true of them, for tests of search.

    python tests/golden/search/make_pictures.py build/pocket/starter

The folder is the starter set of ``recipes/pocket/build_starter.py``. Taken are the pictures on which pocket was not
trained: 403 of Noto Emoji (Google, Apache-2.0) and 216 of the Open Clip Art Library (public domain). Only
embeddings and words are stored; the words are of emojibase (MIT) and of the titles of the clip art.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip.features import encode_images
from clip.inference.loading import fingerprint_of, load_for_inference


def main() -> None:
    folder = Path(sys.argv[1])
    records = [json.loads(line) for line in (folder / "pairs.jsonl").open(encoding="utf-8")]
    records = [record for record in records if record["style"] == "noto" or record["split"] == "test_retrieval"]
    model, preprocess = load_for_inference("pocket", device="cpu", precision="fp32")
    pictures = (on_white(folder / record["file"]) for record in records)
    embeddings = np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, pictures)])
    np.savez_compressed(
        Path(__file__).with_name("pictures.npz"),
        model=fingerprint_of("pocket"),
        embeddings=embeddings.astype(np.float16),
        styles=np.array([record["style"] for record in records]),
        words=np.array(["|".join(sorted(words_of(record))) for record in records]),
    )


def on_white(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def words_of(record: dict[str, Any]) -> set[str]:
    """Single words, in the singular as well where that is an "s" less."""
    groups = [record["category"] or "", record["subcategory"] or ""]
    words = set(re.findall("[a-z]{3,}", " ".join([record["label"], *record["keywords"], *groups]).lower()))
    return words | {word.removesuffix("s") for word in words if len(word) > 3}


if __name__ == "__main__":
    main()
