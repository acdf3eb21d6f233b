"""``clip moderate`` is killed at random instants, sixty times and more: no picture is lost, doubled or changed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip.moderation.audit import verify_log
from clip.moderation.moves import JOURNAL

KILLS = 32
"""Of each test."""

# The command itself, with a moderator that needs no model: it blocks what says so.
PROGRAM = """
import hashlib, os, signal, sys, time
from pathlib import Path
from clip.cli import main, moderate_modes
from clip.moderation.policy import Category, Policy
from clip.moderation.verdict import Finding, Verdict

class Moderator:
    def __init__(self, policy):
        self.policy = policy

    def moderate(self, paths, *, batch_size):
        for path in paths:
            time.sleep(float(os.environ.get("SECONDS_A_PICTURE", 0)))
            try:
                data = Path(path).read_bytes()
            except OSError as error:  # moved by a run beside this one
                yield Verdict(path=path, action="flag", findings=(), policy="p", model="m", error=str(error))
                continue
            score = 0.9 if data.startswith(b"bad") else 0.1
            action = "block" if score > 0.5 else "allow"
            finding = Finding(category="bad", score=score, threshold=0.5, prompt="bad", view="whole", action=action,
                              severity="high", threshold_origin="stated")
            sha256 = hashlib.sha256(data).hexdigest()
            yield Verdict(path=path, action=action, findings=(finding,), policy="p", model="m", sha256=sha256)

policy = Policy(name="test", categories=(Category(name="bad", prompts=("bad",), threshold=0.5),))
moderate_modes.policy_of = lambda name: policy
about = {"model": {"name": "none", "runtime": "none"}}
moderate_modes.open_moderator = lambda session, rules, **given: (Moderator(rules), about)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
sys.exit(main.run(sys.argv[1:]))
"""


class Place:
    """A folder with pictures, the folder for what is blocked, and the log."""

    def __init__(self, home: Path, blocked: Path) -> None:
        self.home, self.blocked, self.log = home, blocked, home.parent / "log.jsonl"
        rng = random.Random(0)
        for number in range(40):
            path = home / "pictures" / f"{number % 3}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((b"bad" if number % 4 else b"good") + bytes([number]) + rng.randbytes(number * 8000))
            os.utime(path, ns=(10**18, 10**18 + number))
        self.before = self.tree(home)

    @staticmethod
    def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
        return {
            str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*")
            if path.is_file() and path.name not in (JOURNAL, ".moves.lock")
        }

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", PROGRAM, "moderate", *map(str, words), "--log", str(self.log)]
        return subprocess.Popen(command, cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def moderate(self) -> subprocess.Popen[bytes]:
        return self.start("pictures", "--policy", "x", "--move-blocked", self.blocked)

    def undo(self) -> subprocess.Popen[bytes]:
        return self.start("--undo", self.blocked)

    def bad_at_home(self) -> int:
        return sum(data.startswith(b"bad") for data, _ in self.tree(self.home).values())

    def is_half_way(self) -> bool:
        """Whether the last move that was written down has not come to its end."""
        journal = self.blocked / JOURNAL
        lines = journal.read_bytes().splitlines() if journal.exists() else []
        return bool(lines) and json.loads(lines[-1])["event"] in ("move", "undo")

    def check_nothing_is_lost(self) -> int:
        """At any instant. Gives how many files are on their way."""
        home, blocked = self.tree(self.home), self.tree(self.blocked) if self.blocked.exists() else {}
        parts = {data for files in (home, blocked) for name, data in files.items() if name.endswith(".part")}
        whole = Counter(data for files in (home, blocked) for name, data in files.items() if not name.endswith(".part"))
        contents = {data for data, _ in self.before.values()}
        assert contents <= {data for data, _ in whole} | {data for data, _ in parts}, "a picture is lost"
        assert {data for data, _ in whole} <= contents, "a picture was changed"
        return len(parts) + sum(count - 1 for count in whole.values())

    def check_it_is_over(self) -> None:
        """After a command has come to its end."""
        assert self.check_nothing_is_lost() == 0, "a picture is there twice, or half"
        both = [*self.tree(self.home).values(), *self.tree(self.blocked).values()]
        assert sorted(both) == sorted(self.before.values())


def _on_disk(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "blocked"


def _on_another_file_system(tmp_path: Path) -> Iterator[Path]:
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    folder = Path(tempfile.mkdtemp(dir=shared))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=[_on_disk, _on_another_file_system])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    for blocked in request.param(tmp_path):
        yield Place(tmp_path / "home", blocked)


def kill(process: subprocess.Popen[bytes], rng: random.Random) -> int:
    """At an instant that nobody can foresee, but while it works. Gives its status."""
    with process:
        assert process.stdout
        for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 8))):
            if not process.stdout.readline():
                break
        time.sleep(rng.uniform(0, 0.012))
        process.kill()
        process.stdout.read()
    return process.returncode


def test_kills_at_random_instants_lose_nothing_and_undo_brings_all_back(place: Place) -> None:
    rng = random.Random(1)
    killed = half_way = 0
    while killed < KILLS:
        bad = place.bad_at_home()
        status = kill(place.moderate() if bad > rng.randrange(30) else place.undo(), rng)
        killed += status == -signal.SIGKILL
        half_way += place.is_half_way()
        place.check_nothing_is_lost()
        found = verify_log(place.log)
        assert found.is_whole, found.problem
    assert half_way >= 5, half_way  # or the kills would have missed what they are for

    with place.moderate() as run:
        _, messages = run.communicate()
    assert run.returncode == 0, messages
    place.check_it_is_over()
    assert place.bad_at_home() == 0
    with place.undo() as run:
        _, messages = run.communicate()
    assert run.returncode == 0, messages
    place.check_it_is_over()
    assert place.tree(place.home) == place.before
    assert place.tree(place.blocked) == {}
    with place.undo() as run:
        assert run.communicate() == (b"", f"clip: {place.blocked}: 0 restored, 0 not\n".encode())

    found = verify_log(place.log)
    assert found.is_whole and not found.is_unfinished
    check_log(place)


def check_log(place: Place) -> None:
    """Nothing is moved without a verdict before it, and the last that is told of each picture is true."""
    last: dict[str, str] = {}
    blocked: set[str] = set()
    for line in place.log.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a tear, which the verification has accounted for
        contents = record["contents"]
        if record["event"] == "verdict" and contents["action"] == "block":
            blocked.add(str(place.home / contents["path"]))
        elif record["event"] in ("move", "undo"):
            assert contents["source"] in blocked
            if contents["result"] in ("moved", "restored"):
                last[contents["source"]] = contents["result"]
    bad = {str(place.home / name) for name, (data, _) in place.before.items() if data.startswith(b"bad")}
    assert last == dict.fromkeys(bad, "restored")


def test_two_runs_at_once_are_killed_beside_each_other(place: Place) -> None:
    rng = random.Random(2)
    for _ in range(2):
        runs = [place.moderate(), place.moderate()]
        kill(rng.choice(runs), rng)
        for run in runs:
            if run.returncode is None:
                run.communicate()
        place.check_nothing_is_lost()
        assert verify_log(place.log).is_whole
        with place.undo() as run:
            run.communicate()
        assert run.returncode == 0
        place.check_it_is_over()
        assert place.tree(place.home) == place.before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_in_the_log(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECONDS_A_PICTURE", "0.05")  # so that it is not over before the signal comes
    place = Place(tmp_path / "home", tmp_path / "blocked")
    with place.moderate() as run:
        assert run.stdout
        run.stdout.readline()
        run.send_signal(number)
        run.communicate()
    place.check_nothing_is_lost()
    found = verify_log(place.log)
    assert found.is_whole
    if number == signal.SIGINT:
        assert run.returncode == 130
        place.check_it_is_over()
        assert json.loads(place.log.read_bytes().splitlines()[-1])["contents"]["interrupted"] is True
    with place.undo() as run:
        run.communicate()
    assert place.tree(place.home) == place.before
