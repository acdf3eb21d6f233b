"""Engines to keep an index in: what is kept by default, beside LanceDB, with text queries on embeddings like real ones.

    python -m venv reference && reference/bin/python -m pip install lancedb
    python benchmarks/stores.py --reference-python reference/bin/python --vectors vectors

Every engine stores the same rows (a path, a size, a date, a digest, a signature and an embedding), 10,000 at a time,
and answers with the paths of the ten nearest pictures. Everything is done by processes of their own: one fills and
builds; one imports, opens and answers a single question, which is what a command on a terminal does; one answers many,
with and without a condition on the size of the file. Engines take turns, round by round, to and fro; the table has
medians, and in brackets the least and the largest ratio of a round. "Answer" is from the creation of the process to the
line that it prints, from files that are in the disk's cache, and "memory" the peak of that process.

LanceDB stores float32, its usual; in float16, as ours does, its IVF_PQ took ten times as long to build. Its distance is
the cosine, its filters are applied before the search (``prefilter``). "refine" compares so many times ten candidates
with the full embeddings; the settings here were the fastest of a few that reached a recall of 0.95.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from vectors import Array

    from clip.search.store import Row

# Neither NumPy nor a store is imported up here: how long that takes is measured.

SOURCE = Path(__file__).parents[1] / "src"
BATCH, K = 10_000, 10
SIZES = 1_000_000
"""File sizes are even from 0 to here, so that a condition on them has any selectivity."""
SHARES = (0.01, 0.5)
DATE = 1_700_000_000_000_000_000


class Form(NamedTuple):
    """One line of the table."""

    title: str
    store: str
    """What fills a folder; forms of the same store share it."""
    setting: dict[str, int]
    """Of a query."""


FORMS = {
    "sqlite": Form("SQLite, exact", "sqlite", {"exact": 1}),
    "sqlite-faiss": Form("SQLite + faiss", "sqlite", {}),
    "lancedb": Form("LanceDB, exact", "lancedb", {}),
    "lancedb-pq": Form("LanceDB, IVF_PQ", "lancedb-pq", {}),
    "lancedb-pq-refine": Form("LanceDB, IVF_PQ, refine 30", "lancedb-pq", {"refine_factor": 30, "nprobes": 50}),
    "lancedb-hnsw": Form("LanceDB, IVF_HNSW_SQ, refine 3", "lancedb-hnsw", {"refine_factor": 3, "ef": 100}),
}

Ask = Callable[["Array", "int | None"], list[int]]
"""A query (E,) and the size that files must be below → the numbers of the nearest rows."""


# Engines: under the interpreter that has them -------------------------------------------------------------------------


class Facts(NamedTuple):
    """What is known of made-up pictures beside their embeddings."""

    sizes: NDArray[np.int64]
    digests: bytes
    signatures: bytes


def make_facts(count: int) -> Facts:
    import numpy as np

    rng = np.random.default_rng(0)
    return Facts(rng.integers(0, SIZES, count), rng.bytes(16 * count), rng.bytes(56 * count))


def path_of(number: int, root: str = "/users/someone/Pictures") -> str:
    return f"{root}/2026/{number % 12 + 1:02}/IMG_{number:08}.jpg"


def number_of(path: str) -> int:
    return int(path[-12:-4])


def rows_of(block: range, facts: Facts, **root: str) -> list[Row]:
    """Rows of a store of ours."""
    from clip.search.store import Row

    return [
        Row(path=path_of(i, **root), size_bytes=int(facts.sizes[i]), modified_ns=DATE + i, width=640, height=480,
            format="JPEG", digest=facts.digests[16 * i : 16 * i + 16],
            signature=facts.signatures[56 * i : 56 * i + 56])
        for i in block
    ]  # fmt: skip


def blocks_of(count: int) -> list[range]:
    return [range(i, min(i + BATCH, count)) for i in range(0, count, BATCH)]


def fill(store: str, folder: Path, pictures: Array) -> dict[str, float]:
    """Seconds to insert, and to build what makes later searches fast."""
    import numpy as np

    facts, blocks = make_facts(len(pictures)), blocks_of(len(pictures))
    np.save(folder / "sizes.npy", facts.sizes)
    if store == "sqlite":
        from clip.search.store import open_store

        with open_store(str(folder / store), embed_dim=pictures.shape[1]) as opened:
            start = time.perf_counter()
            for block in blocks:
                opened.add(rows_of(block, facts), np.ascontiguousarray(pictures[block.start : block.stop]))
            inserted = time.perf_counter()
            opened.optimize()
            return {"insert": inserted - start, "build": time.perf_counter() - inserted}

    import lancedb
    import pyarrow as pa
    from lancedb.index import HnswSq, IvfPq

    schema = pa.schema(
        [("path", pa.string()), ("size_bytes", pa.int64()), ("modified_ns", pa.int64()), ("width", pa.int32()),
         ("height", pa.int32()), ("format", pa.string()), ("digest", pa.binary(16)), ("signature", pa.binary(56)),
         ("vector", pa.list_(pa.float32(), pictures.shape[1]))]
    )  # fmt: skip

    def batch(block: range) -> Any:
        flat = pa.array(np.ascontiguousarray(pictures[block.start : block.stop]).reshape(-1))
        columns = {
            "path": [path_of(i) for i in block], "size_bytes": facts.sizes[block.start : block.stop],
            "modified_ns": [DATE + i for i in block], "width": [640] * len(block), "height": [480] * len(block),
            "format": ["JPEG"] * len(block), "digest": [facts.digests[16 * i : 16 * i + 16] for i in block],
            "signature": [facts.signatures[56 * i : 56 * i + 56] for i in block],
            "vector": pa.FixedSizeListArray.from_arrays(flat, pictures.shape[1]),
        }  # fmt: skip
        return pa.table(columns, schema=schema)

    table = lancedb.connect(folder / store).create_table("pictures", schema=schema)
    start = time.perf_counter()
    for block in blocks:
        table.add(batch(block))
    inserted = time.perf_counter()
    if store == "lancedb":
        table.optimize()
    else:
        config = IvfPq(distance_type="cosine") if store == "lancedb-pq" else HnswSq(distance_type="cosine")
        table.create_index("vector", config=config)
    return {"insert": inserted - start, "build": time.perf_counter() - inserted}


def open_form(form: Form, folder: Path, seconds: dict[str, float]) -> Ask:
    """Imports and opens; says how long each took."""
    start = time.perf_counter()
    if form.store == "sqlite":
        from clip.search.store import Condition, open_store

        imported = time.perf_counter()
        store = open_store(str(folder / form.store))
        opened = time.perf_counter()

        def ask(query: Array, below: int | None) -> list[int]:
            conditions = [] if below is None else [Condition("size_bytes", "<", below)]
            (near,) = store.nearest(query[None], K, conditions, exact=bool(form.setting.get("exact")))
            return [number_of(row.path) for row in store.find(near.ids).rows]
    else:
        import lancedb

        imported = time.perf_counter()
        table = lancedb.connect(folder / form.store).open_table("pictures")
        opened = time.perf_counter()

        def ask(query: Array, below: int | None) -> list[int]:
            search = table.search(query).distance_type("cosine").limit(K).select(["path", "_distance"])
            for name, value in form.setting.items():
                search = getattr(search, name)(value)
            if below is not None:
                search = search.where(f"size_bytes < {below}", prefilter=True)
            return [number_of(path) for path in search.to_arrow()["path"].to_pylist()]

    seconds |= {"import": imported - start, "open": opened - imported}
    return ask


def answer(form: Form, folder: Path) -> None:
    """What a command on a terminal does."""
    seconds: dict[str, float] = {}
    ask = open_form(form, folder, seconds)
    import numpy as np  # every store has imported it

    query = np.load(folder / "query.npy")
    start = time.perf_counter()
    rows = ask(query, None)
    report({**seconds, "first": time.perf_counter() - start, "rows": rows})


def ask_many(form: Form, folder: Path) -> None:
    """Latencies and rows of all queries, without a condition and with each."""
    import numpy as np

    ask = open_form(form, folder, {})
    queries = np.load(folder / "queries.npy")
    result = {}
    for share in (1.0, *SHARES):
        below = None if share == 1 else int(share * SIZES)
        ask(queries[0], below)
        rows, seconds = [], []
        for query in queries:
            start = time.perf_counter()
            rows.append(ask(query, below))
            seconds.append(time.perf_counter() - start)
        result[str(share)] = {"rows": rows, "seconds": statistics.median(seconds)}
    report(result)


# The comparison -------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    seconds: float
    memory_bytes: int
    parts: dict[str, Any]


def run(arguments: Sequence[str | Path], variables: dict[str, str]) -> Answer:
    """The line of JSON that a process prints, how long after its creation, and the peak of its memory."""
    begin = time.perf_counter()
    process = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.PIPE, env=variables, text=True)
    assert process.stdout
    line = process.stdout.readline()
    seconds = time.perf_counter() - begin
    memory, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed; what it said is above")
    return Answer(seconds, int(memory), json.loads(line))


def report(value: dict[str, Any]) -> None:
    """What ``run`` reads."""
    print(json.dumps(value), flush=True)
    from clip.bench.machine import peak_memory  # of the process itself: that of wait4 begins with what the parent had

    print(peak_memory(), flush=True)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE), "RUST_LOG": "error"}


def worker(options: argparse.Namespace, role: str, name: str, folder: Path) -> Answer:
    """This script in another process, under the interpreter that has the engine."""
    python = sys.executable if name.startswith("sqlite") else options.reference_python
    arguments = [python, __file__, f"--{role}", name, folder, "--count", str(options.count)]
    return run([*arguments, "--vectors", options.vectors], environment())


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import numpy as np
    from vectors import exact, read_or_make, recall  # the script beside this one

    pictures, queries = read_or_make(options.vectors, options.count, folder)
    options.vectors = options.vectors or folder / "vectors"
    pictures, queries = pictures[: options.count], queries[: options.queries]
    np.save(folder / "queries.npy", queries)
    np.save(folder / "query.npy", queries[0])

    filled = {}
    for store in dict.fromkeys(form.store for form in FORMS.values()):
        say(f"filling {store}")
        filled[store] = worker(options, "fill", store, folder).parts
        filled[store]["bytes"] = sum(path.stat().st_size for path in (folder / store).rglob("*") if path.is_file())
    sizes = np.load(folder / "sizes.npy")
    truth = {str(share): exact(pictures, queries, K, sizes < int(share * SIZES)) for share in (1.0, *SHARES)}

    answers: dict[str, list[Answer]] = {name: [] for name in FORMS}
    asked: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMS}
    for turn in range(options.rounds + 1):  # the first warms the disk's cache and does not count
        say(f"round {turn} of {options.rounds}")
        for name in list(FORMS)[:: 1 if turn % 2 else -1]:
            cold = worker(options, "answer", name, folder)
            many = worker(options, "ask", name, folder).parts if turn else {}
            if turn:
                answers[name].append(cold)
                asked[name].append(many)
    recalls = {
        name: {share: recall(rounds[0][share]["rows"], truth[share]) for share in truth}
        for name, rounds in asked.items()
    }
    return {
        "filled": filled,
        "answers": {name: [value._asdict() for value in values] for name, values in answers.items()},
        "warm": {name: {s: [r[s]["seconds"] for r in rounds] for s in truth} for name, rounds in asked.items()},
        "recall": recalls,
    }


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def machine_line() -> str:
    """What the figures were measured on, when, and beside what."""
    from clip.bench.machine import this_machine

    machine = this_machine(threads=0, torch="")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f"{machine.processor}, {machine.cores} cores, {datetime.date.today()}, load {load:.1f} at the end"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    values = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"**{statistics.median(values):.2f}** ({values[0]:.2f}–{values[-1]:.2f})"


def table(result: dict[str, Any]) -> str:
    head = ["", "insert, s", "build, s", "disk, MB", "import, s", "answer, s", "× SQLite", "memory, MB"]
    head += ["next, ms", "recall@10"]
    for share in SHARES:
        head += [f"of {share:.0%}, ms", "recall@10"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    first = [answer["seconds"] for answer in next(iter(result["answers"].values()))]
    for name, form in FORMS.items():
        filled, answers = result["filled"][form.store], result["answers"][name]
        seconds = [answer["seconds"] for answer in answers]
        cells = [form.title, f"{filled['insert']:.1f}", f"{filled['build']:.1f}", f"{filled['bytes'] / 1e6:,.0f}"]
        cells += [f"{statistics.median(answer['parts']['import'] for answer in answers):.2f}"]
        cells += [f"{statistics.median(seconds):.2f}", ratios(seconds, first) if name != next(iter(FORMS)) else "1"]
        cells += [f"{statistics.median(answer['memory_bytes'] for answer in answers) / 1e6:,.0f}"]
        for share in ("1.0", *map(str, SHARES)):
            milliseconds = 1000 * statistics.median(result["warm"][name][share])
            cells += [f"{milliseconds:.1f}", f"{result['recall'][name][share]:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="interpreter of an environment with lancedb")
    parser.add_argument("--vectors", type=Path, metavar="FOLDER", help="what vectors.py made; else it is made for once")
    parser.add_argument("--count", type=int, default=100_000, help="pictures (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all values of all rounds")
    for role in ("--fill", "--answer", "--ask"):  # how this script starts itself
        parser.add_argument(role, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        from vectors import read

        store, folder = options.fill
        report(fill(store, Path(folder), read(options.vectors).pictures[: options.count]))
    elif options.answer:
        answer(FORMS[options.answer[0]], Path(options.answer[1]))
    elif options.ask:
        ask_many(FORMS[options.ask[0]], Path(options.ask[1]))
    elif not options.reference_python:
        parser.error("--reference-python is needed")
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, Path(folder))
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{options.count:,} pictures, {options.queries} queries, {options.rounds} rounds; {machine_line()}\n")
        print(table(result))


if __name__ == "__main__":
    main()
