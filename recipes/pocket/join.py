"""The towers, taught apart by one encoder → one model, WORK/joined.safetensors, from which ``clip train`` goes on.

Run after ``teach.py`` and ``train.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from teach import CONFIG, part_of

from clip.checkpoints.files import Checkpoint, write_checkpoint
from clip.preprocess import Preprocess

LICENCE = "MIT; trained on art under MIT, Apache-2.0, CC BY, CC BY-SA and others: recipes/pocket/MODEL_CARD.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    work = parser.parse_args().work
    words, images = torch.load(work / "text.pt")["model"], torch.load(work / "image.pt")
    weights = {**part_of(words, "visual.", is_without=True), "logit_scale": images["logit_scale"]}
    weights |= {f"visual.{name}": value.contiguous() for name, value in images["average"].items()}
    checkpoint = Checkpoint(
        config=CONFIG,
        state_dict=weights,
        preprocess=Preprocess(size=CONFIG.image_resolution),
        source="recipes/pocket",
        licence=LICENCE,
    )
    output = work / "joined.safetensors"
    output.unlink(missing_ok=True)
    write_checkpoint(checkpoint, output)


if __name__ == "__main__":
    main()
