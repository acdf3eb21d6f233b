"""Writes the shards beside this file with webdataset's own writer, as img2dataset and CLIP_benchmark use it.

    python -m venv reference && reference/bin/pip install --no-deps webdataset
    reference/bin/pip install numpy pyyaml braceexpand pillow
    reference/bin/python tests/golden/data/make_shards.py

Made with webdataset 1.0.2. Their bytes hold the time at which they were made.
"""

import io
import json
from pathlib import Path

import webdataset
from PIL import Image

HERE = Path(__file__).parent
COLOURS = ("red", "green", "blue", "white")


def picture(colour: str, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, image_format)
    return buffer.getvalue()


def main() -> None:
    with webdataset.TarWriter(str(HERE / "img2dataset.tar")) as sink:
        for i, colour in enumerate(COLOURS):
            caption = f"a {colour} card"
            about = {"caption": caption, "alt": f"{colour}!", "url": f"https://example.org/{i}", "status": "success"}
            sink.write(
                {"__key__": f"{i:09d}", "jpg": picture(colour, "JPEG"), "txt": caption, "json": json.dumps(about)}
            )
    with webdataset.TarWriter(str(HERE / "clip_benchmark.tar")) as sink:
        for i, colour in enumerate(COLOURS):
            sink.write({"__key__": f"s{i:07d}", "webp": picture(colour, "WEBP"), "cls": i % 3})
    with webdataset.TarWriter(str(HERE / "retrieval.tar")) as sink:
        for i, colour in enumerate(COLOURS):
            captions = f"a {colour} card\nall {colour}"
            sink.write({"__key__": f"s{i:07d}", "webp": picture(colour, "WEBP"), "txt": captions})


if __name__ == "__main__":
    main()
