"""``clip index`` is killed at random instants, thirty times and more, and comes to the same index."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import MODEL  # also decides what the server of processes has loaded

import clip
from clip.errors import IndexNotFoundError
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.search.documents import read_about
from clip.search.items import Item
from clip.search.prepare import prepare
from clip.search.store import Row, open_store

PICTURES = 120
BATCH = 4

_processes = multiprocessing.get_context("forkserver")


def start(words: list[object], log: Path) -> BaseProcess:
    """A process that runs ``clip`` with these words, and stores each batch at once. What it embeds goes to ``log``."""
    process = _processes.Process(target=_run, args=([str(word) for word in words], str(log)))
    process.start()
    return process


def _run(words: list[str], log: str) -> None:
    from clip.cli.main import run
    from clip.search import indexing
    from clip.search.encoder import Encoder

    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(os.open(f"{log}.out", os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
    indexing._STORE_SECONDS = 0.0
    encode = Encoder.encode

    def logged(self: Encoder, sources: list[np.ndarray], **options: object) -> object:
        time.sleep(0.02)  # so that there are instants between the batches, whatever else the machine does
        prepared = [one for one in sources if isinstance(one, np.ndarray) and one.dtype == np.float32]
        os.write(descriptor, "".join(f"{_hash(pixels)}\n" for pixels in prepared).encode())
        return encode(self, sources, **options)  # type: ignore[arg-type]

    Encoder.encode = logged  # type: ignore[assignment, method-assign]
    sys.exit(run(words))


def _hash(pixels: np.ndarray) -> str:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    clip.save(CLIP.from_config(dataclasses.replace(MODEL, context_length=77)).eval(), path)
    return path


def write(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(path)


def stored(index: Path) -> dict[str, tuple[Row, bytes]]:
    """Rows and embeddings by path; nothing if there is no index yet."""
    try:
        with open_store(str(index)) as store:
            found = [pair for part in store.scan() for pair in zip(part.rows, part.embeddings, strict=True)]
    except IndexNotFoundError:
        return {}
    rows = {row.path: (row, embedding.tobytes()) for row, embedding in found}
    assert len(rows) == len(found)
    return rows


def count(index: Path) -> int:
    try:
        with open_store(str(index)) as store:
            return store.count()
    except IndexNotFoundError:
        return 0


def pixels_of(rows: dict[str, tuple[Row, bytes]], index: Path, known: dict[bytes | None, str]) -> set[str]:
    """Hashes of what the model would take of these pictures. known: those of an earlier call, by digest."""
    with open_store(str(index)) as store:
        about = read_about(store)
    assert about is not None
    preprocess = Preprocess.from_dict(about.preprocess)
    for path, (row, _) in rows.items():
        if row.digest not in known and Path(path).exists():
            prepared = prepare(Item(path=path, image=path), preprocess)
            known[prepared.row.digest] = _hash(prepared.pixels)
    return {known[row.digest] for row, _ in rows.values() if row.digest in known}


def embedded(log: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [line for line in log.read_text().splitlines() if len(line) == 32]
    return []


def kills(command: list[object], index: Path, log: Path, times: int, rng: random.Random) -> Iterator[None]:
    """Starts the command and kills it, so often; each time is an item. Checks that none embeds what was stored."""
    known: dict[bytes | None, str] = {}
    for _ in range(times):
        before = stored(index)
        log.unlink(missing_ok=True)
        process = start(command, log)
        if rng.random() < 0.4:
            time.sleep(rng.uniform(0, 0.5))  # loading, walking, or whatever comes then
        else:
            enough = len(before) + rng.randrange(1, 8)
            while process.is_alive() and count(index) < enough:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.join()
        output = Path(f"{log}.out").read_text() if Path(f"{log}.out").exists() else ""
        assert process.exitcode in (-signal.SIGKILL, 0), output
        if stored(index):
            assert not pixels_of(before, index, known) & {*embedded(log)}, "embedded again what was stored"
            for catalogue in index.glob("catalogue-*.db"):
                with contextlib.closing(sqlite3.connect(catalogue)) as database:
                    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        yield


def forget(index: Path, number: int, rng: random.Random) -> None:
    """Takes so many pictures out of an index; none if the number is negative."""
    if number > 0:
        with open_store(str(index)) as store:
            store.remove(rng.sample([known.path for known in store.known()], number))


def finish(command: list[object], log: Path) -> dict[str, int]:
    Path(f"{log}.out").unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    process = start(command, log)
    process.join()
    output = Path(f"{log}.out").read_text()
    assert process.exitcode == 0, output
    report: dict[str, int] = json.loads(output.splitlines()[-1])
    return report


def test_thirty_kills_at_random_instants_lose_nothing_and_duplicate_nothing(model: Path, tmp_path: Path) -> None:
    folder, whole, killed, log = (tmp_path / name for name in ("pictures", "whole", "killed", "log"))
    for number in range(PICTURES):
        write(folder / f"{number % 4}" / f"{number:03}.png", number)
    options = ["--model", model, "--batch-size", BATCH, "--json"]
    rng = random.Random(0)

    def commands() -> tuple[list[object], list[object]]:
        return ["index", folder, "--into", whole, *options], ["index", folder, "--into", killed, *options]

    uninterrupted, interrupted = commands()
    assert finish(uninterrupted, log)["added"] == PICTURES
    partial = 0
    for _ in kills(interrupted, killed, log, 20, rng):
        partial += 0 < len(stored(killed)) < PICTURES
        forget(killed, len(stored(killed)) - PICTURES // 2, rng)  # or there would soon be nothing left to do
    assert partial >= 8  # or this would test less than it says
    before = stored(killed)
    report = finish(interrupted, log)
    assert report["unchanged"] == len(before) and report["embedded"] == report["added"] == PICTURES - len(before)
    assert stored(killed) == stored(whole)

    shutil.move(folder / "1", folder / "moved")
    shutil.rmtree(folder / "2")
    for number in range(0, PICTURES, 4):
        write(folder / "0" / f"{number:03}.png", 1000 + number)
        write(folder / "new" / f"{number:03}.png", 2000 + number)
    assert finish(uninterrupted, log)["renamed"] == PICTURES // 4
    changed = 0
    for _ in kills(interrupted, killed, log, 14, rng):
        changed += stored(killed) != stored(whole)
        if stored(killed) == stored(whole):
            forget(killed, PICTURES // 2, rng)
    assert changed >= 4
    finish(interrupted, log)
    assert stored(killed) == stored(whole)
    assert finish(interrupted, log)["unchanged"] == len(stored(whole)) == PICTURES


def test_the_installed_command_is_killed_and_goes_on(tmp_path: Path) -> None:
    folder, index = tmp_path / "pictures", tmp_path / "index"
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (1500, 2000, 3), dtype=np.uint8))
    noise.save(folder / "000.png", compress_level=0)  # as quick to write as it is slow to read
    for number in range(1, 400):
        os.link(folder / "000.png", folder / f"{number:03}.png")
    clip_command = Path(sys.executable).parent / "clip"
    command = [str(word) for word in (clip_command, "index", folder, "--into", index, "--batch-size", 8, "--json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not count(index):
            time.sleep(0.01)
        process.kill()
        _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    before = stored(index)
    assert 0 < len(before) < 400
    for path in [*folder.iterdir()][::2]:  # the rest need not be waited for
        if str(path) not in before:
            path.unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    left = len([*folder.iterdir()])
    assert (report["unchanged"], report["embedded"]) == (len(before), left - len(before) - report["copied"])
    assert len(stored(index)) == left


def test_two_commands_at_once_make_one_index(tmp_path: Path) -> None:
    index, both = tmp_path / "index", tmp_path / "pictures"
    for number in range(40):
        write(both / ("left" if number % 2 else "right") / f"{number}.png", number)
    commands = [
        [sys.executable, "-m", "clip", "index", *map(str, folders), "--into", str(index), "--quiet"]
        for folders in ((both / "left", both / "right"), (both,))
    ]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert sorted(stored(index)) == sorted(str(path) for path in both.rglob("*.png"))
