"""Processes that write one index are killed at random instants, or write at the same time: nothing that a call has
returned from is lost, nothing is there twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clip.search.sqlite_store import SQLiteStore

KILLS = 30
E = 16

WRITER = f"""
import sys, numpy, random
from clip.search.sqlite_store import SQLiteStore
from clip.search.store import Row
address, seed, rounds, paths = sys.argv[1], *map(int, sys.argv[2:])
SQLiteStore.exact_rows = 150
rng = random.Random(seed)
store = SQLiteStore.open(address, embed_dim={E})
print("done", flush=True)
sys.stdin.readline()
for step in range(rounds):
    version = seed * 1_000_000 + step
    some = rng.sample(range(paths), 20)
    values = numpy.zeros((20, {E}), "float32")
    values[:, version % {E}] = 1
    print("add", version, *some, flush=True)
    store.add([Row(path=f"/p/{{n:04}}", size_bytes=version) for n in some], values)
    print("done", flush=True)
    if step % 5 == 4:
        print("remove", version, *some[:3], flush=True)
        store.remove([f"/p/{{n:04}}" for n in some[:3]])
        print("done", flush=True)
    if step % 8 == 7:
        print("optimize 0", flush=True)
        store.optimize()
        print("done", flush=True)
"""


def start(address: Path, seed: int, rounds: int, paths: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(address), str(seed), str(rounds), str(paths)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def versions(store: SQLiteStore) -> dict[str, int]:
    """By path; checks that the database is whole and each row has the embedding of its version."""
    with store._reading() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        orphans = "SELECT count(*) FROM embeddings WHERE id NOT IN (SELECT id FROM rows)"
        assert connection.execute(orphans).fetchone() == (0,)
    seen: dict[str, int] = {}
    for found in store.scan():
        for row, embedding in zip(found.rows, found.embeddings, strict=True):
            assert row.path not in seen
            assert row.size_bytes is not None
            assert embedding[row.size_bytes % E] == 1
            seen[row.path] = row.size_bytes
    return seen


def after(state: dict[str, int], what: str) -> dict[str, int]:
    """What an announced call makes of the rows."""
    verb, version, *numbers = what.split()
    paths = [f"/p/{int(number):04}" for number in numbers]
    if verb == "add":
        return state | dict.fromkeys(paths, int(version))
    return {path: version for path, version in state.items() if path not in paths}


def test_kills_at_random_instants_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    rng = random.Random(0)
    address = tmp_path / "index"
    state: dict[str, int] = {}
    killed: Counter[str] = Counter()
    for number in range(KILLS):
        lines: list[str] = []
        with start(address, number, 10**6, 600) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.close()
            for line in process.stdout:
                lines.append(line.strip())
                is_there = len(lines) > rng.choice((1, 2, 5, 20)) or number == 0
                if is_there and (number % 3 or line.startswith("optimize")):
                    break
            time.sleep(rng.uniform(0, 0.01 if number % 3 else 0.05))
            process.kill()
            lines += process.stdout.read().splitlines()
        assert process.returncode == -signal.SIGKILL
        pending = None
        for line in lines:
            if line != "done":
                pending = line
            elif pending is not None:
                state, pending = after(state, pending), None
        with SQLiteStore.open(str(address), embed_dim=E) as store:
            found = versions(store)
            assert len(found) == store.count() == len(list(store.known()))
        assert found in (state, after(state, pending) if pending else state)
        state = found
        killed[pending.split()[0] if pending else "between"] += 1
    assert killed["add"] >= 3, killed  # or this would test less than it says
    assert killed["optimize"] >= 3, killed
    with SQLiteStore.open(str(address)) as store:
        store.exact_rows = 150
        store.optimize()
        assert versions(store) == state
        query = np.eye(1, E, dtype=np.float32)
        [near], [exact] = store.nearest(query, 5), store.nearest(query, 5, exact=True)
        np.testing.assert_array_equal(near.cosines, exact.cosines)
    left = [path.name for path in address.iterdir() if "nearest" in path.name and path.suffix != ".lock"]
    assert len(left) == 1, left  # nothing that was half written stays


def test_two_writers_and_a_reader_at_the_same_time(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    address = tmp_path / "index"
    writers = [start(address, seed, 60, 200) for seed in (1, 2)]  # both make the index, both write the same paths
    announced: set[int] = set()
    reads = 0
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "done\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    with SQLiteStore.open(str(address)) as reader:
        reader.exact_rows = 150
        query = np.eye(1, E, dtype=np.float32)
        while any(writer.poll() is None for writer in writers):
            total = reader.count()
            [near] = reader.nearest(query, 30)
            assert len(near.ids) == len(set(near.ids.tolist())) <= 200
            assert total <= 200
            versions_now = versions(reader) if reads % 10 == 0 else {}
            assert all(version // 1_000_000 in (1, 2) for version in versions_now.values())
            reads += 1
        final = versions(reader)
        assert len(final) == reader.count()
    for writer in writers:
        output, _ = writer.communicate()
        assert writer.returncode == 0
        announced |= {int(line.split()[1]) for line in output.splitlines() if line.startswith("add")}
    assert reads > 0
    assert set(final.values()) <= announced
    assert len(announced) == 2 * 60
