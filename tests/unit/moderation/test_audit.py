"""A log with a chain of hashes: whatever is done to a line is found; what a killed writer leaves is told apart."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from clip.errors import ClipError, ConfigError, DataError
from clip.moderation import audit
from clip.moderation.audit import NO_HASH, AuditLog, verify_log

EVENTS = ("start", "verdict", "verdict", "move", "end")
SURROGATE = "caf\udce9.png"
"""A file name whose bytes are not UTF-8."""


def write(path: Path, count: int = 5) -> list[bytes]:
    """A log of so many records, as lines."""
    with AuditLog(path) as log:
        for number in range(count):
            log.append(EVENTS[number % 5], {"path": SURROGATE, "number": number, "score": 0.1 + number})
    return path.read_bytes().splitlines(keepends=True)


def test_a_log_is_verified_by_hand(tmp_path: Path) -> None:
    previous = NO_HASH
    for number, line in enumerate(write(tmp_path / "log.jsonl"), start=1):
        record = json.loads(line)
        assert list(record) == ["seq", "time", "run", "event", "contents", "previous", "hash"]
        assert (record["seq"], record["event"], record["previous"]) == (number, EVENTS[number - 1], previous)
        assert record["contents"] == {"path": SURROGATE, "number": number - 1, "score": 0.1 + (number - 1)}
        assert record["time"].endswith("Z")
        previous = record.pop("hash")
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        assert previous == hashlib.sha256(canonical.encode("ascii")).hexdigest()
    found = verify_log(tmp_path / "log.jsonl")
    assert (found.records, found.head, found.is_whole, found.is_unfinished) == (5, previous, True, False)
    assert found.events == {"start": 1, "verdict": 2, "move": 1, "end": 1}


def test_a_later_run_continues_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path)
    write(path)
    assert verify_log(path).records == 10
    assert len({json.loads(line)["run"] for line in path.read_bytes().splitlines()}) == 2


def test_an_empty_log_is_whole(tmp_path: Path) -> None:
    AuditLog(tmp_path / "log.jsonl").close()
    found = verify_log(tmp_path / "log.jsonl")
    assert (found.records, found.head, found.is_whole) == (0, NO_HASH, True)


# Tampering ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(5))
def test_each_change_is_found_at_its_line(tmp_path: Path, place: int) -> None:
    path = tmp_path / "log.jsonl"
    lines = write(path)

    def reason(new: list[bytes]) -> tuple[int, str] | None:
        path.write_bytes(b"".join(new))
        problem = verify_log(path).problem
        return problem and (problem.line, problem.reason)

    changed = lines[place].replace(b'"number": ', b'"number": 7')
    spaced = lines[place].replace(b'"number": ', b'"number":  ')
    for line in (changed, spaced):
        assert reason([*lines[:place], line, *lines[place + 1 :]]) == (place + 1, "it was changed: its hash is another")
    garbage = [*lines[:place], b"garbage\n", *lines[place + 1 :]]
    assert reason(garbage) == (place + 1, "it is no record")
    assert reason([*lines[:place], b"\n", *lines[place:]]) == (place + 1, "it is no record")
    doubled = reason([*lines[: place + 1], *lines[place:]])
    assert doubled is not None
    assert doubled[0] == place + 2
    assert "inserted" in doubled[1]
    if place < 4:  # a deleted end cannot be seen
        deleted = reason([*lines[:place], *lines[place + 1 :]])
        assert deleted == (
            place + 1,
            f"record {place + 2} stands where {place + 1} should: lines were deleted, inserted or moved",
        )
        swapped = [*lines[:place], lines[place + 1], lines[place], *lines[place + 2 :]]
        assert (reason(swapped) or (0,))[0] == place + 1
    assert reason(lines) is None


def test_a_line_that_is_sealed_anew_breaks_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = write(path)
    record = json.loads(lines[2])
    record["contents"]["number"] = 99
    record["hash"] = audit._hash(record)
    path.write_bytes(b"".join([*lines[:2], json.dumps(record).encode() + b"\n", *lines[3:]]))
    problem = verify_log(path).problem
    assert problem is not None
    assert problem.line == 4
    assert "it does not follow record 3" in problem.reason


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    data = b"".join(write(path))
    rng = random.Random(0)
    for place in [len(data) - 1, 0, *rng.sample(range(len(data)), 300)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        problem = verify_log(path).problem
        assert problem is not None, place
        assert problem.line in (data[:place].count(b"\n") + 1, data[:place].count(b"\n") + 2)


def test_a_log_that_was_cut_off_needs_an_anchor(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = write(path)
    heads = [json.loads(line)["hash"] for line in lines]
    assert all(verify_log(path, expect=head).is_whole for head in (heads[0], heads[-1]))
    path.write_bytes(b"".join(lines[:3]))
    assert verify_log(path).is_whole
    assert verify_log(path, expect=heads[2]).is_whole
    problem = verify_log(path, expect=heads[4]).problem
    assert problem is not None
    assert (problem.line, problem.reason[:20]) == (0, "no record has the ha")
    with pytest.raises(ConfigError, match="'abc' is no hash of a record; it has 64 digits"):
        verify_log(path, expect="abc")


def test_nothing_is_added_where_the_end_was_tampered_with(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = write(path)
    for end in (
        lines[4].replace(b'"number": 4', b'"number": 5'),
        b"garbage\n",
        b"garbage",
        b"\n",
        lines[4][:-1] + b"x",
    ):
        path.write_bytes(b"".join(lines[:4]) + end)
        with pytest.raises(DataError, match="does not end as a log does, so nothing is added"):
            AuditLog(path)
        assert path.read_bytes() == b"".join(lines[:4]) + end


@pytest.mark.parametrize("contents", [b"hello\n", b"[]\n" * 5, b"{}", os.urandom(5000), b"\n", b'{"event": "move"}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(contents)
    with pytest.raises(DataError, match="does not end as a log does"):
        AuditLog(path)
    assert path.read_bytes() == contents
    assert not verify_log(path).is_whole


# Tears ----------------------------------------------------------------------------------------------------------------


def test_a_tear_at_every_byte_is_recorded_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = write(path, 3)
    whole = b"".join(lines)
    length = len(lines[-1])
    for left in (*range(1, length - 1, 6), length - 1, length):
        torn = whole[: len(whole) - len(lines[-1]) + left]
        path.write_bytes(torn)
        before = verify_log(path)
        is_record = left >= len(lines[-1]) - 1
        assert before.is_whole
        assert (before.records, before.is_unfinished) == ((3, False) if is_record else (2, True))
        with AuditLog(path) as log:
            log.append("end", {})
        data = path.read_bytes()
        assert data.startswith(torn), "a log is only ever added to"
        after = verify_log(path)
        assert after.is_whole and not after.is_unfinished
        assert after.records == 4  # the record or the note of its tear, and the end
        assert after.events.get("torn", 0) == (not is_record)
    record = json.loads(data.splitlines()[-1])
    assert (record["seq"], record["event"]) == (4, "end")


def test_a_tear_in_the_first_line_and_tears_upon_tears(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"seq": 1, "ti')
    with AuditLog(path) as log:
        log.append("start", {})
    assert verify_log(path).events == {"torn": 1, "start": 1}
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1][:40]]))  # whoever recorded the tear was killed, too
    assert verify_log(path).is_unfinished
    with AuditLog(path) as log:
        log.append("start", {})
    found = verify_log(path)
    assert (found.is_whole, found.events) == (True, {"torn": 1, "start": 1})
    path.write_bytes(path.read_bytes() + b'{"seq"' + bytes(300))  # the power failed
    with AuditLog(path) as log:
        log.append("end", {})
    assert verify_log(path).events == {"torn": 2, "start": 1, "end": 1}


def test_a_tear_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = write(path, 3)
    path.write_bytes(b"".join(lines) + lines[-1][:50])
    with AuditLog(path) as log:
        log.append("end", {})
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    for broken in (
        [*lines[:3], *lines[4:]],  # without the torn line
        [*lines[:3], lines[3][:20] + b"\n", *lines[4:]],  # with another
        [*lines[:3], *lines[4:5], lines[3], lines[5]],  # in another order
        [*lines[:2], lines[2][:60] + b"\n", *lines[3:]],  # with a record made to look torn
        [*lines[:4], lines[5]],  # without the note
    ):
        path.write_bytes(b"".join(broken))
        assert verify_log(path).problem is not None


def test_a_full_disk_leaves_a_tear(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond a limit."""
    path = tmp_path / "log.jsonl"
    program = """
import resource, signal, sys
from clip.errors import ClipError
from clip.moderation.audit import AuditLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with AuditLog(sys.argv[1]) as log:
    log.append("start", {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        for number in range(100):
            log.append("verdict", {"number": number})
    except ClipError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append("end", {})  # and where there is room again, the same process goes on
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: the log cannot be written (File too large); make room for it\n"
    found = verify_log(path)
    assert found.is_whole
    assert (found.events["torn"], found.events["end"]) == (1, 1)


# Several writers, size ------------------------------------------------------------------------------------------------


def _append_many(path: str, count: int) -> None:
    with AuditLog(path) as log:
        for number in range(count):
            log.append("verdict", {"number": number, "long": "x" * (number % 7) * 3000})


def test_processes_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=_append_many, args=(str(path), 60)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert verify_log(path).events == {"verdict": 180}
    runs = [json.loads(line)["run"] for line in path.read_bytes().splitlines()]
    assert len(set(runs)) == 3


def test_verification_holds_one_line_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with AuditLog(path) as log:
        for _ in range(200):
            log.append("verdict", {"notes": "x" * 20_000})
    tracemalloc.start()
    assert verify_log(path).records == 200
    peak = tracemalloc.get_traced_memory()[1]
    path.write_bytes(b"[" * 40_000_000)  # no line end, and no record
    tracemalloc.reset_peak()
    problem = verify_log(path).problem
    assert problem is not None
    assert (problem.line, problem.reason) == (1, "it is longer than any record")
    long_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 < path.stat().st_size
    assert long_peak < 3 * audit._LONGEST_LINE + 1_000_000


def test_what_cannot_be_logged_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder .*missing does not exist; create it"):
        AuditLog(tmp_path / "missing" / "log.jsonl")
    with pytest.raises(ClipError, match="cannot be written"):
        AuditLog(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        verify_log(tmp_path / "none")
    with AuditLog(tmp_path / "log.jsonl") as log:
        with pytest.raises(ClipError, match="a record 'verdict' has 17,"):
            log.append("verdict", {"notes": "x" * (17 << 20)})
        with pytest.raises(ValueError, match="JSON"):
            log.append("verdict", {"score": float("nan")})
        log.append("end", {})
    assert verify_log(tmp_path / "log.jsonl").records == 1
