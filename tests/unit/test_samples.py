"""The pictures that come with the package."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from PIL import Image

from clip import samples
from clip.samples import pictures
from clip.simple_tokenizer import token_ids

EXAMPLES = Path(__file__).parents[2] / "examples"


def _rows(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def test_each_is_a_picture_with_a_label_and_a_caption_of_its_own() -> None:
    found = pictures()
    assert [len([one for one in found if one.name.startswith(kind)]) for kind in ("photos/", "emoji/")] == [20, 16]
    assert len({one.caption for one in found}) == len(found)
    for one in found:
        with Image.open(io.BytesIO(one.image)) as image:
            image.load()
            assert image.format == {"jpg": "JPEG", "png": "PNG"}[one.name.rpartition(".")[2]]
            assert min(image.size) == (256 if image.format == "JPEG" else 96)
        assert one.label
    assert token_ids([one.caption for one in found], 24).shape == (36, 24)  # short enough for small models, pocket too


def test_every_file_has_its_line_and_a_licence() -> None:
    folder = Path(str(files(samples)))
    rows = _rows(folder / "samples.csv")
    there = {path.relative_to(folder).as_posix() for kind in ("photos", "emoji") for path in (folder / kind).iterdir()}
    assert {row["file"] for row in rows} == there
    assert all(row["source"] and row["license"] for row in rows)
    assert "Apache License" in (folder / "APACHE-2.0.txt").read_text(encoding="utf-8")  # it asks to be passed on
    assert sum((folder / name).stat().st_size for name in there) < 700_000


def test_what_examples_hold_too_is_the_same() -> None:
    by_name = {one.name: one for one in pictures()}
    for path in [*EXAMPLES.glob("photos/*.jpg"), *EXAMPLES.glob("emoji/*.png")]:
        assert by_name[path.relative_to(EXAMPLES).as_posix()].image == path.read_bytes()
    for table in EXAMPLES.glob("*/labels.csv"):
        for row in _rows(table):
            one = by_name[f"{table.parent.name}/{row['file']}"]
            assert one.label == row["label"]
            assert one.caption == row.get("caption", one.caption)


def test_reading_them_needs_no_torch() -> None:
    code = "import sys; from clip.samples import pictures; pictures(); print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
