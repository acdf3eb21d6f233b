"""A trained model → the file that ships: fp16, and the token table as 8-bit rows.

python recipes/pocket/pack.py --model build/pocket/run/model.safetensors --output src/clip/pocket.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from join import LICENCE

from clip.checkpoints.files import read_checkpoint, write_checkpoint

LARGEST_BYTES = 30_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.model)
    halves = {
        name: value.half() if value.is_floating_point() else value for name, value in checkpoint.state_dict.items()
    }
    packed = dataclasses.replace(checkpoint, state_dict=halves, source="recipes/pocket", licence=LICENCE)
    arguments.output.unlink(missing_ok=True)
    write_checkpoint(packed, arguments.output, int8_rows=("token_embedding.weight",))
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {size:,d} bytes")
    if size > LARGEST_BYTES:
        raise SystemExit(f"{size:,d} bytes are more than the {LARGEST_BYTES:,d} that a wheel should carry")


if __name__ == "__main__":
    main()
