"""The tests of pocket, laid out as tables that ``clip evaluate`` reads, under WORK/tests.

Run after ``fetch.sh`` and ``build_starter.py``. For each test of TESTS there is NAME.jsonl with images and captions
and, where pictures are named, NAME.txt with the names to choose from:

    clip evaluate pocket --data build/pocket/tests/noto.jsonl --class-names build/pocket/tests/noto.txt \\
        --template "a drawing of a {}" --template "an emoji of a {}" --template "{}"
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

STYLES = ("twemoji", "openmoji", "fluent_flat", "noto")
HERE = Path(__file__).parent


class Layout:
    def __init__(self, work: Path, photos: Path) -> None:
        self.starter, self.photos = work / "starter", photos
        self.stamps = work / "src/tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
        self.fashion = work / "src/dataset-fashion-mnist/usr/share/datasets/fashion-mnist"
        self.tests = work / "tests"
        self.tests.mkdir(parents=True, exist_ok=True)
        self.records = [json.loads(line) for line in (self.starter / "pairs.jsonl").read_text().splitlines()]
        self.concepts = json.loads((self.starter / "concepts.json").read_text())
        self.held: dict[str, str] = json.loads((self.starter / "holdout.json").read_text())["concepts"]

    def write(self, name: str, pairs: Sequence[tuple[Path, str]], names: Sequence[str] = ()) -> None:
        lines = [
            json.dumps({"image": os.path.relpath(image, self.tests), "caption": caption}, ensure_ascii=False)
            for image, caption in pairs
        ]
        (self.tests / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        if names:
            (self.tests / f"{name}.txt").write_text("\n".join(names) + "\n")

    def starter_pairs(self, split: str, style: str, caption: str = "label") -> list[tuple[Path, str]]:
        return [
            (self.starter / record["file"], record[caption])
            for record in self.records
            if (record["split"], record["style"]) == (split, style)
        ]

    def unseen(self) -> list[dict]:
        splits = ("test_style_and_concept", "test_concept")
        return [record for record in self.records if record["split"] in splits and record["style"] in STYLES]

    def write_all(self) -> None:
        # a. A style that no training picture had.
        noto = self.starter_pairs("test_style", "noto")
        self.write("noto", noto, sorted({r["label"] for r in self.records if r["style"] == "noto"}))
        self.write("noto-retrieval", [(image, f"an emoji of a {label}") for image, label in noto])
        # b. Concepts that no training picture showed, in four styles.
        unseen = self.unseen()
        full = {code: ", ".join([label, *self.concepts[code]["keywords"][:4]]) for code, label in self.held.items()}
        kind = {code: concept["subcategory"].replace("-", " ") for code, concept in self.concepts.items()}
        for name, text in (("unseen", self.held), ("unseen-keywords", full)):
            pairs = [(self.starter / record["file"], text[record["concept"]]) for record in unseen]
            self.write(name, pairs, [text[code] for code in sorted(self.held)])
        pairs = [(self.starter / record["file"], kind[record["concept"]]) for record in unseen]
        self.write("unseen-kind", pairs, sorted(set(kind.values())))
        # c. Photographs, which pocket is not for.
        if self.stamps.is_dir():
            with (HERE / "tuxpaint_photos.csv").open() as lines:
                rows = list(csv.DictReader(lines))
            for name, column in (("tuxpaint-coarse", "coarse"), ("tuxpaint-fine", "label")):
                # "animal: bird" → "bird"
                pairs = [(self.stamps / row["path"], row[column].split(": ")[-1]) for row in rows]
                self.write(name, pairs, sorted({caption for _, caption in pairs}))
        with (self.photos / "labels.csv").open() as lines:
            photos = [(self.photos / row["file"], row["caption"]) for row in csv.DictReader(lines)]
        self.write("photos", photos, [caption for _, caption in photos])
        # d. Fashion-MNIST comes as IDX files, which clip evaluate reads as they are.
        # e. Clip art by its title.
        self.write("clipart", self.starter_pairs("test_retrieval", "clipart"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--photos", type=Path, default=Path("examples/photos"))
    arguments = parser.parse_args()
    Layout(arguments.work, arguments.photos).write_all()


if __name__ == "__main__":
    main()
