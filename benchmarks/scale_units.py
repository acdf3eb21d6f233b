"""What one picture costs an index, and the plans for 1 M, 100 M and 10 G that follow from it: docs/scale.md.

    python benchmarks/scale_units.py --rows 100000 --pictures 2000

Measured: bytes and seconds of a row that is imported from a Parquet file as workers of Ray leave it (512 dimensions),
of the file itself, of faiss's file beside the catalogue, of reading what an index knows; and how many JPEG files a
second ``clip index`` takes on this machine (as ``indexing.py`` measures it: random weights for ViT-B/32). All else in
the plans is arithmetic, or from a source that docs/scale.md names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from indexing import FEW, command, make_pictures, model_file  # the scripts beside this one
from stores import machine_line, make_facts, rows_of, say
from vectors import make_clusters

EMBED_DIM = 512
SIZES = {"1 M": 1e6, "100 M": 1e8, "10 G": 1e10}
PART_ROWS = 8192


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_rows(folder: Path, count: int) -> dict[str, float]:
    from clip.search.about import About
    from clip.search.embedded import import_embeddings
    from clip.search.ray_engine import _PartFile  # what a worker writes with
    from clip.search.seen import Seen
    from clip.search.sources import open_source
    from clip.search.store import open_store

    make_clusters(folder / "vectors", count, EMBED_DIM)
    vectors = np.load(folder / "vectors" / "pictures.npy", mmap_mode="r")
    facts = make_facts(count)
    about = About(
        model="any", fingerprint="0" * 64, embed_dim=EMBED_DIM, preprocess={}, engine="torch", precision="fp32"
    )
    parts = folder / "parts"
    parts.mkdir()
    begin = time.perf_counter()
    for first in range(0, count, PART_ROWS):
        block = range(first, min(first + PART_ROWS, count))
        part = _PartFile(about)
        part.add(rows_of(block, facts), np.array(vectors[block.start : block.stop]))
        part.write(parts)
    units = {"file_bytes": size_of(parts) / count, "file_rows_per_second": count / (time.perf_counter() - begin)}
    with open_store(str(folder / "index"), embed_dim=EMBED_DIM) as store:
        embedded: Any = open_source(f"{parts}/*.parquet")
        begin = time.perf_counter()
        import_embeddings(store, embedded, on_problem=fail)
        units["import_rows_per_second"] = count / (time.perf_counter() - begin)
        begin = time.perf_counter()
        assert len(Seen(store)) == count
        units["known_rows_per_second"] = count / (time.perf_counter() - begin)
        store.close()
    units["store_bytes"] = before = size_of(folder / "index") / count
    with open_store(str(folder / "index")) as store:
        begin = time.perf_counter()
        store.optimize()
        units["optimize_rows_per_second"] = count / (time.perf_counter() - begin)
    units["faiss_bytes"] = size_of(folder / "index") / count - before
    return units


def fail(error: Exception) -> None:
    raise error


def measure_pictures(folder: Path, count: int, models: list[str], rounds: int) -> dict[str, float]:
    """JPEG files a second of a whole command, beyond the first few: medians."""
    make_pictures(folder / "pictures", count)
    (folder / "few").mkdir()
    for path in sorted((folder / "pictures").rglob("*.jpg"))[:FEW]:
        os.link(path, folder / "few" / path.name)
    files = {name: model_file(name, folder) for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds):
        for name, model in files.items():
            few, all_ = (
                command(folder / pictures, folder / f"{number}-{pictures}-{name.replace('/', '-')}.index", model)
                for pictures in ("few", "pictures")
            )
            seconds[name].append(all_.seconds - few.seconds)
    return {name: (count - FEW) / statistics.median(values) for name, values in seconds.items()}


def plans(units: dict[str, float], rates: dict[str, float]) -> str:
    """A table: what each size needs."""
    rows = [
        ("catalogue (SQLite), GB", [size * units["store_bytes"] / 1e9 for size in SIZES.values()]),
        ("faiss file, GB", [size * units["faiss_bytes"] / 1e9 for size in SIZES.values()]),
        ("embeddings alone, fp16, GB", [size * EMBED_DIM * 2 / 1e9 for size in SIZES.values()]),
        ("files of workers, GB", [size * units["file_bytes"] / 1e9 for size in SIZES.values()]),
        ("importing by one process, h", [size / units["import_rows_per_second"] / 3600 for size in SIZES.values()]),
        ("building faiss's file, h", [size / units["optimize_rows_per_second"] / 3600 for size in SIZES.values()]),
        ("reading what is known, h", [size / units["known_rows_per_second"] / 3600 for size in SIZES.values()]),
        ("  and keeping it in mind, GB", [size * 8 / 1e9 for size in SIZES.values()]),
    ]
    for name, rate in rates.items():
        rows.append((f"embedding by {name}, machine-h", [size / rate / 3600 for size in SIZES.values()]))
    head = f"| | {' | '.join(SIZES)} |\n| --- |{' ---: |' * len(SIZES)}"
    return "\n".join([head, *(f"| {what} | {' | '.join(map(significant, values))} |" for what, values in rows)])


def significant(value: float) -> str:
    """Two digits."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=2000, help="JPEG files (default: %(default)s)")
    parser.add_argument("--models", nargs="*", default=["pocket", "ViT-B/32"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="of JPEG files (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the values")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        say("rows")
        units = measure_rows(folder, options.rows)
        say("pictures")
        rates = measure_pictures(folder, options.pictures, options.models, options.rounds)
    if options.json:
        options.json.write_text(json.dumps({"units": units, "pictures_per_second": rates}, indent=2) + "\n")
    print(f"{options.rows:,} rows of {EMBED_DIM} dimensions, {options.pictures:,} JPEG files; {machine_line()}\n")
    for what, value in {**units, **{f"{name}_pictures_per_second": rate for name, rate in rates.items()}}.items():
        print(f"{what:36} {value:12,.1f}")
    print(f"\n{plans(units, rates)}")


if __name__ == "__main__":
    main()
