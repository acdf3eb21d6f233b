"""The trained weights → the file that ships: fp16, and the token table as 8-bit rows.

python recipes/pocket/pack.py --output src/clip/pocket.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from teach import CONFIG, part_of

from clip.checkpoints.files import Checkpoint, write_checkpoint
from clip.preprocess import Preprocess

LICENCE = "MIT; trained on art under MIT, Apache-2.0, CC BY, CC BY-SA and others: recipes/pocket/MODEL_CARD.md"
LARGEST_BYTES = 25_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    # The towers agree although they never met: one encoder taught both.
    words, images = (torch.load(arguments.work / name)["model"] for name in ("text.pt", "image.pt"))
    weights = {**part_of(words, "visual.", is_without=True), **images}
    checkpoint = Checkpoint(
        config=CONFIG,
        state_dict={key: value.half() if value.is_floating_point() else value for key, value in weights.items()},
        preprocess=Preprocess(size=CONFIG.image_resolution),
        source="recipes/pocket",
        licence=LICENCE,
    )
    arguments.output.unlink(missing_ok=True)
    write_checkpoint(checkpoint, arguments.output, int8_rows=("token_embedding.weight",))
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {size:,d} bytes")
    if size > LARGEST_BYTES:
        raise SystemExit(f"{size:,d} bytes are more than the {LARGEST_BYTES:,d} that a wheel should carry")


if __name__ == "__main__":
    main()
