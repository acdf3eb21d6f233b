"""The pictures that train, with their captions, as shards for ``clip train``: WORK/shards/{emoji,icons,scenes}.

Run after ``corpus.py`` and ``targets.py``. Every picture stands on white or on a light ground, icons in an ink of their
own. Its captions: the label alone, in templates, and with keywords. A scene is two pictures side by side with a caption
that names both: what is there must be told from what else is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import random
from pathlib import Path

import numpy as np
from PIL import Image
from teach import TEMPLATES, Texts
from train import Pictures

from clip.data.packing import pack
from clip.data.records import Sample

SCENES = 5000
SCENE_CAPTIONS = (
    *("{} and {}", "a {} and a {}", "a {} next to a {}", "{}, {}", "{} beside {}"),
    *("a {} on the left and a {} on the right", "a {} to the left of a {}"),
)


@dataclasses.dataclass(frozen=True)
class Drawings:
    """One of the three sources."""

    pictures: Pictures
    rows: list[tuple[int, ...]]
    """One picture of the corpus, or two of a scene."""
    name: str
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        generator = random.Random(f"{self.name} {index}")
        rows = self.rows[index]
        ground = [255] * 3 if generator.random() < 0.7 else [generator.randint(150, 255) for _ in range(3)]
        parts = [self._on(row, ground, generator) for row in rows]
        file = io.BytesIO()
        Image.fromarray(np.concatenate(parts, axis=1)).save(file, "PNG")
        return Sample(key=f"{self.name}:{index}", image=file.getvalue(), captions=self._captions(rows, generator))

    def _on(self, row: int, ground: list[int], generator: random.Random) -> np.ndarray:
        """(64, 64, 3) uint8."""
        rgba = self.pictures.pixels[row].permute(1, 2, 0).numpy().astype(np.float32)  # alpha is multiplied in
        colour, alpha = rgba[..., :3], rgba[..., 3:] / 255
        if not colour.any():
            colour = alpha * np.array([generator.randint(0, 110) for _ in range(3)])
        return np.clip(colour + (1 - alpha) * np.array(ground), 0, 255).astype(np.uint8)

    def _captions(self, rows: tuple[int, ...], generator: random.Random) -> tuple[str, ...]:
        records = [self.pictures.records[row] for row in rows]
        labels = [record["label"] for record in records]
        if len(rows) > 1:
            return tuple(template.format(*labels) for template in generator.sample(SCENE_CAPTIONS, 3))
        label, words = labels[0], [word for word in records[0]["keywords"] if word.lower() not in labels[0]]
        captions = [label, label, *(template.format(label) for template in generator.sample(TEMPLATES, 3))]
        if words:
            captions += [", ".join([label, *generator.sample(words, min(len(words), k))]) for k in (1, 2, 3)]
        return tuple(dict.fromkeys(captions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    work = parser.parse_args().work
    pictures = Pictures(work, Texts(work))
    generator = random.Random(0)
    drawn = [int(row) for kind in ("concept", "emoji", "clipart") for row in pictures.groups[kind]]
    scenes: list[tuple[int, ...]] = []
    while len(scenes) < SCENES:
        one, two = generator.sample(pictures.groups["concept"].tolist(), 2)
        if pictures.records[one]["label"] != pictures.records[two]["label"]:
            scenes.append((one, two))
    icons = [(int(row),) for row in pictures.groups["icon"]]
    for name, rows in (("emoji", [(row,) for row in drawn]), ("icons", icons), ("scenes", scenes)):
        print(name, pack(Drawings(pictures, rows, name), work / "shards" / name, overwrite=True))


if __name__ == "__main__":
    main()
