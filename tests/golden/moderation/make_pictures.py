"""Makes ``labels.csv`` and ``pictures/``: all Noto drawings of the five categories of restricted-goods, and as many of
none, the hard ones first.

    python tests/golden/moderation/make_pictures.py build/pocket/moderation

The folder is what ``recipes/moderation/pictures.py`` makes. The pictures are from Noto Emoji by Google Inc. (Apache
License 2.0, src/clip/samples/APACHE-2.0.txt; npm @iconify/json 2.2.535, sets noto and noto-v1), scaled to 80 pixels and
64 colours. None of them ever trained pocket.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent


def main(source: Path) -> None:
    with (source / "noto.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    positives = [row for row in rows if row["categories"]]
    others = [row for row in rows if not row["categories"]]
    # Hard ones first; of either kind, those that come first by their hash: nobody chose them.
    others.sort(key=lambda row: (not row["hard"], hashlib.sha256(row["path"].encode()).hexdigest()))
    hard = [row for row in others if row["hard"]][:30]
    chosen = sorted(positives + hard + [row for row in others if not row["hard"]][:10], key=lambda row: row["path"])
    shutil.rmtree(HERE / "pictures", ignore_errors=True)
    (HERE / "pictures").mkdir()
    with (HERE / "labels.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("path", "categories", "hard"))
        for row in chosen:
            name = Path(row["path"]).name
            with Image.open(source / row["path"]) as picture:
                small = picture.convert("RGB").resize((80, 80), Image.Resampling.LANCZOS)
            small.quantize(64, dither=Image.Dither.NONE).save(HERE / "pictures" / name, optimize=True)
            writer.writerow((f"pictures/{name}", row["categories"], row["hard"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
