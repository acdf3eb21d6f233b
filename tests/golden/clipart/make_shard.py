"""Makes ``clipart.tar``: the 216 pictures of the retrieval test, each with its title, as a WebDataset shard.

    python tests/golden/clipart/make_shard.py build/pocket/starter

The folder is what ``recipes/pocket/build_starter.py`` makes. The pictures are from Open Clip Art (Debian's package
openclipart-svg 1:0.18+dfsg-19), drawn at 128 pixels, and in the public domain. None of them ever trained pocket.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path


def main(starter: Path) -> None:
    records = [json.loads(line) for line in (starter / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [record for record in records if record["split"] == "test_retrieval"]
    with tarfile.open(Path(__file__).parent / "clipart.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
        for record in sorted(chosen, key=lambda record: record["id"]):
            key = record["id"].partition(":")[2]
            for name, data in (
                (f"{key}.png", (starter / record["file"]).read_bytes()),
                (f"{key}.txt", record["label"].encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
