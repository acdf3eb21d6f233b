"""The nearest pictures in an index as it grows, beside exact search by NumPy in memory: speed, recall, memory, disk.

    python benchmarks/nearest.py --vectors vectors clusters --counts 10000 100000 1000000

``vectors.py`` makes the sets; without ``--vectors`` a small one is made from the pictures of the package. Queries are
embeddings of texts, asked through ``Store.nearest`` as ``clip search`` asks them, but for the model.

Filling, the first answer of a fresh process, the index that answers on and NumPy are processes of their own. NumPy has
all embeddings in memory as float32 and answers by ``X @ q`` and ``argpartition``. The last two take turns, round by
round, on the same threads; a ratio is taken within a round, and the table gives the median and, in brackets, the least
and the largest. "Batch" is all queries of a batch in one call, NumPy's by one matrix product.

Recall is the share of the true ten nearest that are among the ten found, for a thousand queries (with filters: 200).
Truth is float32, so what float16 changes counts against the index. A filter is a condition on the size of the file that
this share of the pictures fulfils. Memory of "index" is the peak of a process that has answered all of this, with the
pages of files that it has mapped; the first answer is from the creation of a process, with files in the disk's cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stores import SIZES, environment, fill, machine_line, number_of, report, run, say  # the script beside this one
from vectors import Array, Vectors, exact, read, read_or_make, recall

if TYPE_CHECKING:
    from clip.search.store import Neighbours

K, QUERIES = 10, 1000
SHARES = (0.01, 0.1, 0.5)
FILTERED = 200
RECALL, RATIO = 0.95, 20.0
"""Targets at a million: recall@10 at least, and times the queries/s of NumPy, one query at a time."""


# Processes -----------------------------------------------------------------------------------------------------------


def serve_index(folder: Path, vectors: Vectors) -> None:
    """Answers through the store."""
    from clip.search.store import Condition, open_store

    store = open_store(str(folder / "sqlite"))

    def ask(queries: Array, share: float) -> list[Neighbours]:
        conditions = [] if share == 1 else [Condition("size_bytes", "<", int(share * SIZES))]
        return store.nearest(queries, K, conditions)

    def numbers(queries: Array, share: float) -> list[list[int]]:
        return [[number_of(row.path) for row in store.find(near.ids).rows] for near in ask(queries, share)]

    serve(vectors.queries, ask, numbers)


def serve_numpy(vectors: Vectors) -> None:
    """Answers by exact search in memory."""
    pictures = np.array(vectors.pictures)

    def ask(queries: Array, share: float) -> Any:
        cosines = pictures @ (queries.T if len(queries) > 1 else queries[0])  # (N, Q) or (N,)
        near = np.argpartition(-cosines, K, axis=0)[:K]
        return np.take_along_axis(near, np.argsort(-np.take_along_axis(cosines, near, 0), axis=0), 0)

    serve(vectors.queries, ask, ask)


def serve(queries: Array, ask: Callable[[Array, float], Any], numbers: Callable[[Array, float], Any]) -> None:
    """Answers each line of stdin: how many queries a second, what is found, or how much memory it has taken.

    ask, numbers: queries (Q, E) and a share → answers, and the same as numbers of rows.
    """
    from clip.bench.machine import peak_memory

    ask(queries[:1], 1)
    print(json.dumps(None), flush=True)
    for line in sys.stdin:
        what, size, share, seconds = json.loads(line)
        answer: Any = peak_memory()
        if what == "rows":
            answer = numbers(queries[:size], share)
        elif what == "rate":
            begin, calls, start = 0, 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds or not calls:
                ask(queries[begin : begin + size], share)
                begin = (begin + size) % (len(queries) - size + 1)
                calls += 1
            answer = calls * size / elapsed
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that answers until it is closed."""

    def __init__(self, role: str, folder: Path, vectors: Path, count: int) -> None:
        arguments = [sys.executable, __file__, f"--{role}", str(folder), "--vectors", str(vectors)]
        self.process = subprocess.Popen(
            [*arguments, "--counts", str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(),
        )  # fmt: skip
        self.read()

    def read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker has ended; what it said is above: {self.process.args}")
        return json.loads(line)

    def ask(self, what: str, size: int = 1, share: float = 1.0, seconds: float = 0.0) -> Any:
        assert self.process.stdin
        print(json.dumps([what, size, share, seconds]), file=self.process.stdin, flush=True)
        return self.read()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# The comparison ------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, source: Path, count: int, folder: Path) -> dict[str, Any]:
    """Everything about one size of one set."""
    vectors = first(read(source), count)
    np.save(folder / "query.npy", vectors.queries[0])
    say(f"{source.name}, {count:,}: filling")
    here = [sys.executable, __file__]
    common = ["--vectors", source, "--counts", str(count)]
    filled = run([*here, "--fill", folder, *common], environment())
    files = [path for path in (folder / "sqlite").rglob("*") if path.is_file()]
    result: dict[str, Any] = {"vectors": source.name, "count": count, "embed_dim": vectors.pictures.shape[1]}
    result |= {**filled.parts, "fill_memory": filled.memory_bytes}
    result["disk"] = {path.name: path.stat().st_size for path in files}

    say(f"{source.name}, {count:,}: first answers")
    cold = [*here[:1], Path(__file__).with_name("stores.py"), "--answer", "sqlite-faiss", folder]
    run(cold, environment())  # warms the disk's cache
    answers = [run(cold, environment()) for _ in range(options.rounds)]
    result["cold"] = [answer.seconds for answer in answers]
    result["cold_memory"] = statistics.median(answer.memory_bytes for answer in answers)

    say(f"{source.name}, {count:,}: rates")
    sizes = np.load(folder / "sizes.npy")
    rates: dict[str, list[float]] = {}
    with Worker("index", folder, source, count) as index:
        every = len(vectors.queries)
        result["recall"] = recall(index.ask("rows", every), exact(vectors.pictures, vectors.queries, K))
        for share in SHARES:
            truth = exact(vectors.pictures, vectors.queries[:FILTERED], K, sizes < int(share * SIZES))
            result[f"recall of {share:.0%}"] = recall(index.ask("rows", FILTERED, share), truth)
        with Worker("numpy", folder, source, count) as reference:
            for turn in range(options.rounds):
                for name, worker in [("index", index), ("numpy", reference)][:: 1 if turn % 2 else -1]:
                    for what, size in (("one", 1), ("batch", options.batch)):
                        rate = worker.ask("rate", size, seconds=options.seconds)
                        rates.setdefault(f"{name} {what}", []).append(rate)
        for share in SHARES:
            rates[f"index {share:.0%}"] = [index.ask("rate", 1, share, options.seconds)]
        result["index_memory"] = index.ask("memory")
    return result | {"rates": rates}


def first(vectors: Vectors, count: int) -> Vectors:
    return Vectors(vectors.pictures[:count], vectors.queries[:QUERIES])


def table(results: Sequence[dict[str, Any]], batch: int) -> str:
    head = ["pictures", "set", "insert, s", "build, s", "memory, MB", "database, MB", "faiss, MB", "first answer, s"]
    head += ["memory, MB", "queries/s", "NumPy", "×", f"batch of {batch}, /s", "NumPy", "×", "recall@10", "memory, MB"]
    lines = [f"| {' | '.join(head)} |", "|---:|---" + "|---:" * (len(head) - 2) + "|"]
    for result in results:
        rates, disk = result["rates"], result["disk"]
        derived = sum(size for name, size in disk.items() if ".faiss" in name)
        cells = [f"{result['count']:,}", result["vectors"], f"{result['insert']:.1f}", f"{result['build']:.1f}"]
        cells += [megabytes(result["fill_memory"]), megabytes(sum(disk.values()) - derived), megabytes(derived)]
        cells += [f"{statistics.median(result['cold']):.2f}", megabytes(result["cold_memory"])]
        for what in ("one", "batch"):
            ours, theirs = rates[f"index {what}"], rates[f"numpy {what}"]
            cells += [f"{statistics.median(ours):,.0f}", f"{statistics.median(theirs):,.1f}", ratios(ours, theirs)]
        cells += [f"{result['recall']:.3f}", megabytes(result["index_memory"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_filters(results: Sequence[dict[str, Any]]) -> str:
    shares = [f"{share:.0%}" for share in SHARES]
    columns = [column for share in shares for column in (f"of {share}, ms", "recall@10")]
    lines = [f"| pictures | set | all, ms | recall@10 | {' | '.join(columns)} |"]
    lines.append("|---:|---" + "|---:" * (len(columns) + 2) + "|")
    for result in results:
        cells = [f"{result['count']:,}", result["vectors"]]
        cells += [f"{1000 / statistics.median(result['rates']['index one']):.1f}", f"{result['recall']:.3f}"]
        for share in shares:
            cells += [f"{1000 / result['rates'][f'index {share}'][0]:.1f}", f"{result[f'recall of {share}']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(results: Sequence[dict[str, Any]]) -> str:
    """Of the largest indexes, which the targets are for."""
    lines = []
    for result in (one for one in results if one["count"] >= 1_000_000):
        ours, theirs = (result["rates"][f"{side} one"] for side in ("index", "numpy"))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        for what, value, target in (("recall@10", result["recall"], RECALL), ("queries/s × NumPy's", ratio, RATIO)):
            word = "met" if value >= target else "missed"
            lines.append(f"{result['vectors']}, {result['count']:,}: {what} {value:.3g}, target ≥ {target:g}: {word}")
    return "\n".join(lines)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    values = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"**{statistics.median(values):.1f}** ({values[0]:.1f}–{values[-1]:.1f})"


def megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, nargs="+", metavar="FOLDER", help="what vectors.py made")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000], help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="of each rate in each round (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all values of all rounds")
    for role in ("--fill", "--index", "--numpy"):  # how this script starts itself
        parser.add_argument(role, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill or options.index or options.numpy:
        vectors = first(read(options.vectors[0]), options.counts[0])
        if options.fill:
            report(fill("sqlite", options.fill, vectors.pictures))
        elif options.index:
            serve_index(options.index, vectors)
        else:
            serve_numpy(vectors)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = options.vectors
        if not folders:
            read_or_make(None, max(options.counts), Path(scratch))
            folders = [Path(scratch) / "vectors"]
        results = []
        for source in folders:
            for count in options.counts:
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    results.append(measure(options, source, count, Path(folder)))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    widths = " and ".join(str(width) for width in dict.fromkeys(result["embed_dim"] for result in results))
    print(f"{widths} dimensions, {options.rounds} rounds of {options.seconds:g} s; {machine_line()}\n")
    print(table(results, options.batch), table_of_filters(results), verdicts(results), sep="\n\n")


if __name__ == "__main__":
    main()
