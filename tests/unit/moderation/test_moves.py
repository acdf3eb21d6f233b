"""Pictures that are moved and come back: killed between any two calls of the system, none is lost or doubled."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clip.errors import ClipError, DataError
from clip.moderation import relocation
from clip.moderation.moves import JOURNAL, BlockedFolder, Outcome, undo
from clip.moderation.relocation import Identity, Step, settle, without_names_in_use
from clip.moderation.verdict import Finding, Verdict

FINDING = Finding(
    category="weapons",
    score=0.9,
    threshold=0.5,
    prompt="a knife",
    view="whole",
    action="block",
    severity="high",
    threshold_origin="stated",
)


def judged(path: Path | str) -> Verdict:
    """The verdict that blocks what is there now."""
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return Verdict(path=str(path), action="block", findings=(FINDING,), policy="p", model="m", sha256=sha256)


def tree(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """What each file of a folder holds, its mode and its time, by path; without what the journal needs."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (JOURNAL, ".moves.lock")
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with pictures, to be named relative to it."""
    home = tmp_path / "home"
    for number, name in enumerate(("a.png", "b.png", "inside/a.png")):
        path = home / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 3000)
        path.chmod(0o640)
        os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_987_654_321 + number))
    return home


def move(home: Path, blocked: Path, *names: str, **options: Any) -> list[Outcome]:
    with BlockedFolder(blocked, root=home, **options) as folder:
        return [folder.move(judged(home / "pictures" / name)) for name in names]


def results(outcomes: Iterator[Outcome] | list[Outcome]) -> list[str]:
    return [outcome.result for outcome in outcomes]


# There and back -------------------------------------------------------------------------------------------------------


def test_pictures_keep_their_paths_and_come_back(home: Path, tmp_path: Path) -> None:
    before, blocked = tree(home), tmp_path / "blocked"
    told: list[Outcome] = []
    outcomes = move(home, blocked, "a.png", "inside/a.png", on_outcome=told.append)
    assert outcomes == told
    assert results(outcomes) == ["moved", "moved"]
    assert outcomes[0].destination == str(blocked / "pictures" / "a.png")
    assert tree(home).keys() == {"pictures/b.png"}
    assert tree(blocked) == {name: before[name] for name in ("pictures/a.png", "pictures/inside/a.png")}
    assert results(undo(blocked)) == ["restored", "restored"]
    assert tree(home) == before
    assert sorted(path.name for path in blocked.iterdir()) == [".moves.lock", JOURNAL]  # no empty folders
    assert results(undo(blocked / JOURNAL)) == []


def test_the_journal_says_why_before_anything_moves(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "blocked" / JOURNAL
    seen: list[dict[str, Any]] = []
    rename = os.rename

    def look(source: Any, destination: Any) -> None:
        seen.append(json.loads(journal.read_text().splitlines()[-1]))
        rename(source, destination)

    monkeypatch.setattr(os, "rename", look)
    facts = (home / "pictures" / "a.png").stat()
    move(home, tmp_path / "blocked", "a.png")
    record = seen[0]
    assert record.pop("time") and len(record.pop("id")) == 16
    assert record == {
        "version": 1,
        "event": "move",
        "source": str(home / "pictures" / "a.png"),
        "destination": "pictures/a.png",
        "sha256": hashlib.sha256(bytes(3000)).hexdigest(),
        "identity": [facts.st_dev, facts.st_ino, 3000, facts.st_mtime_ns],
        "how": "rename",
        "verdict": {
            **{"action": "block", "category": "weapons", "score": 0.9, "threshold": 0.5},
            **{"policy": "p", "model": "m"},
        },
    }


def test_a_picture_from_elsewhere_keeps_its_whole_path(home: Path, tmp_path: Path) -> None:
    with BlockedFolder(tmp_path / "blocked", root=home / "pictures" / "inside") as folder:
        outcome = folder.move(judged(home / "pictures" / "a.png"))
    path = home / "pictures" / "a.png"
    assert outcome.destination == str(tmp_path / "blocked" / path.relative_to(path.anchor))


def test_equal_names_get_numbers_and_come_back_the_latest_first(home: Path, tmp_path: Path) -> None:
    blocked, path = tmp_path / "blocked", home / "pictures" / "a.png"
    contents = []
    for number in range(3):
        contents.append(path.read_bytes())
        [outcome] = move(home, blocked, "a.png")
        assert Path(outcome.destination or "").name == ("a.png", "a (2).png", "a (3).png")[number]
        path.write_bytes(b"new" + bytes([number]))
    path.unlink()
    outcomes = list(undo(blocked))
    assert results(outcomes) == ["restored", "not restored", "not restored"]
    assert outcomes[1].reason == "another file has its place"
    assert path.read_bytes() == contents[2]
    assert {data for data, *_ in tree(blocked).values()} == {*contents[:2]}
    path.unlink()
    assert results(undo(blocked)) == ["restored", "not restored"]
    assert path.read_bytes() == contents[1]


@pytest.mark.parametrize(
    "name",
    ["new\nline.png", "\x1b[31m.png", "caf\udce9.png", "x" * 251 + ".png", "ü" * 125 + ".png", " .png", "noname"],
)
def test_names_of_any_kind(home: Path, tmp_path: Path, name: str) -> None:
    path = home / "pictures" / name
    for number in range(2):
        path.write_bytes(bytes([number, 9]))
        [outcome] = move(home, tmp_path / "blocked", name)
        assert outcome.is_done
        assert not path.exists()
    assert len(tree(tmp_path / "blocked")) == 2
    assert results(undo(tmp_path / "blocked")) == ["restored", "not restored"]
    assert path.read_bytes() == bytes([1, 9])


def test_the_folder_may_be_moved_itself(home: Path, tmp_path: Path) -> None:
    before = tree(home)
    move(home, tmp_path / "blocked", "a.png", "b.png")
    (tmp_path / "blocked").rename(tmp_path / "elsewhere")
    assert results(undo(tmp_path / "elsewhere")) == ["restored", "restored"]
    assert tree(home) == before


def test_a_folder_that_is_gone_is_made_again(home: Path, tmp_path: Path) -> None:
    before = tree(home)
    move(home, tmp_path / "blocked", "inside/a.png")
    (home / "pictures" / "inside").rmdir()
    assert results(undo(tmp_path / "blocked")) == ["restored"]
    assert tree(home) == before


def test_a_hard_link_loses_one_name_and_gets_it_back(home: Path, tmp_path: Path) -> None:
    path = home / "pictures" / "a.png"
    os.link(path, home / "other.png")
    move(home, tmp_path / "blocked", "a.png")
    assert (home / "other.png").read_bytes() == bytes(3000)
    assert results(undo(tmp_path / "blocked")) == ["restored"]
    assert path.samefile(home / "other.png")


def test_a_path_through_links_and_dots_is_the_same_picture(home: Path, tmp_path: Path) -> None:
    (home / "link").symlink_to("pictures")
    with BlockedFolder(tmp_path / "blocked", root=home) as folder:
        outcome = folder.move(judged(f"{home}/link/inside/../a.png"))
    assert outcome.source == str(home / "pictures" / "a.png")


# What is not moved ----------------------------------------------------------------------------------------------------


def _changed(path: Path) -> None:
    path.write_bytes(b"another picture")


def _linked(path: Path) -> None:
    path.rename(path.with_name("target.png"))
    path.symlink_to("target.png")


def _piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (_changed, "it does not hold what was judged"),
        (Path.unlink, "No such file or directory"),
        (_linked, "it is a symbolic link; move what it leads to"),
        (_piped, "it is no regular file"),
        (_made_a_folder, "it is no regular file"),
    ],
)
def test_a_picture_moves_only_if_it_is_still_what_was_judged(
    home: Path, tmp_path: Path, happens: Callable[[Path], None], reason: str
) -> None:
    path = home / "pictures" / "a.png"
    verdict = judged(path)
    happens(path)
    before = path.lstat() if os.path.lexists(path) else None
    with BlockedFolder(tmp_path / "blocked", root=home) as folder:
        outcome = folder.move(verdict)
    assert (outcome.result, outcome.reason, outcome.destination) == ("not moved", reason, None)
    assert (path.lstat() if before else None) == before
    assert tree(tmp_path / "blocked") == {}
    assert (tmp_path / "blocked" / JOURNAL).read_bytes() == b""


@pytest.mark.parametrize("crosses", [False, True])
def test_a_picture_that_changes_at_the_last_instant_goes_back(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crosses: bool
) -> None:
    """After it was compared with the verdict, and before it is taken."""
    path, mkdir = home / "pictures" / "a.png", Path.mkdir
    if crosses:
        _two_file_systems(monkeypatch, tmp_path / "blocked")

    def mkdir_and_change(self: Path, *arguments: Any, **options: Any) -> None:
        mkdir(self, *arguments, **options)
        if self.name == "pictures":
            path.write_bytes(b"edited")

    with BlockedFolder(tmp_path / "blocked", root=home) as folder:
        verdict = judged(path)
        monkeypatch.setattr(Path, "mkdir", mkdir_and_change)
        outcome = folder.move(verdict)
        monkeypatch.setattr(Path, "mkdir", mkdir)
    assert (outcome.result, outcome.reason) == ("not moved", "it has changed since it was looked at")
    assert path.read_bytes() == b"edited"
    assert tree(tmp_path / "blocked") == {}
    assert results(undo(tmp_path / "blocked")) == []


def test_a_picture_that_is_replaced_while_its_copy_is_made_stays(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, place = home / "pictures" / "a.png", relocation.place
    _two_file_systems(monkeypatch, tmp_path / "blocked")

    def place_and_change(part: Path, name: Path) -> None:
        place(part, name)
        path.write_bytes(b"newer")

    with BlockedFolder(tmp_path / "blocked", root=home) as folder:
        monkeypatch.setattr(relocation, "place", place_and_change)
        assert folder.move(judged(path)).result == "moved"
    assert path.read_bytes() == b"newer"
    assert tree(tmp_path / "blocked")["pictures/a.png"][0] == bytes(3000)


def test_what_lies_in_the_folder_is_not_moved_again(home: Path) -> None:
    with BlockedFolder(home / "pictures" / "blocked", root=home) as folder:
        outcome = folder.move(judged(home / "pictures" / "a.png"))
        assert outcome.destination is not None
        assert outcome.destination in folder
        assert str(home / "pictures" / "b.png") not in folder
        assert folder.move(judged(outcome.destination)).reason == "it is in the folder already"


def test_a_file_that_could_not_be_read_when_it_was_judged_stays(home: Path, tmp_path: Path) -> None:
    with BlockedFolder(tmp_path / "blocked", root=home) as folder:
        verdict = dataclasses.replace(judged(home / "pictures" / "a.png"), sha256=None, error="bad")
        assert folder.move(verdict).reason == "it could not be read when it was judged"


def test_a_name_that_appears_meanwhile_is_not_replaced(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, mkdir = tmp_path / "blocked" / "pictures" / "a.png", Path.mkdir

    def mkdir_and_take(self: Path, *arguments: Any, **options: Any) -> None:
        mkdir(self, *arguments, **options)
        if self == foreign.parent:
            foreign.write_bytes(b"foreign")

    monkeypatch.setattr(Path, "mkdir", mkdir_and_take)
    before = tree(home)
    [outcome] = move(home, tmp_path / "blocked", "a.png")
    assert (outcome.result, outcome.reason) == ("not moved", "File exists")
    assert foreign.read_bytes() == b"foreign"
    assert tree(home) == before


def test_undo_leaves_what_has_changed_or_gone(home: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    move(home, blocked, "a.png", "b.png", "inside/a.png")
    (blocked / "pictures" / "a.png").write_bytes(b"edited")
    (blocked / "pictures" / "b.png").unlink()
    (blocked / "pictures" / "inside" / "a.png").rename(home / "pictures" / "inside" / "a.png")
    outcomes = list(undo(blocked))
    assert results(outcomes) == ["restored", "not restored", "not restored"]
    assert [outcome.reason for outcome in outcomes] == [
        "somebody has put it back",
        f"{blocked}/pictures/b.png is not there any more",
        f"{blocked}/pictures/a.png has changed since it was moved",
    ]
    assert (blocked / "pictures" / "a.png").read_bytes() == b"edited"
    assert results(undo(blocked)) == ["not restored", "not restored"]


# Places that do not take it -------------------------------------------------------------------------------------------


def test_folders_that_are_closed(home: Path, tmp_path: Path) -> None:
    """In a process that is not root's."""
    before = tree(home)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    closed, opened = tmp_path / "closed", tmp_path / "open"
    closed.mkdir(mode=0o555)
    opened.mkdir()
    opened.chmod(0o777)
    program = """
import os, sys
from clip.errors import ClipError
from clip.moderation.moves import BlockedFolder
from clip.moderation.verdict import Verdict
if os.geteuid() == 0:
    os.setuid(65534)
home, closed, opened, sha256 = sys.argv[1:]
os.chdir(home)
try:
    BlockedFolder(closed)
except ClipError as error:
    print(error)
with BlockedFolder(opened) as folder:
    verdict = Verdict(path="pictures/a.png", action="block", findings=(), policy="", model="", sha256=sha256)
    print(folder.move(verdict).reason)
"""
    for path in (home, home / "pictures"):
        path.chmod(0o555)
    (home / "pictures" / "a.png").chmod(0o644)
    sha256 = hashlib.sha256(bytes(3000)).hexdigest()
    command = [sys.executable, "-c", program, home, closed, opened, sha256]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for path in (home, home / "pictures"):
        path.chmod(0o755)
    assert done.stdout.splitlines() == [
        f"{closed}: pictures cannot be moved there (Permission denied)",
        "Permission denied",
    ], done.stderr
    (home / "pictures" / "a.png").chmod(0o640)
    assert tree(home) == before
    assert tree(opened) == {}


def test_an_original_that_cannot_be_removed_is_not_copied(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, unlink = home / "pictures" / "a.png", Path.unlink
    _two_file_systems(monkeypatch, tmp_path / "blocked")

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    before = tree(home)
    [outcome] = move(home, tmp_path / "blocked", "a.png")
    assert (outcome.result, outcome.reason) == ("not moved", "Permission denied")
    assert tree(home) == before
    assert tree(tmp_path / "blocked") == {}


def test_a_full_disk_leaves_the_picture_where_it_is(home: Path, tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond a limit, between two file systems."""
    other = _another_file_system(tmp_path)
    (home / "pictures" / "large.png").write_bytes(bytes(200_000))
    before = tree(home)
    program = """
import hashlib, os, resource, signal, sys
from pathlib import Path
from clip.moderation.moves import BlockedFolder, undo
from clip.moderation.verdict import Verdict
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
os.chdir(sys.argv[1])
with BlockedFolder(sys.argv[2]) as folder:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    for name in ("large.png", "a.png"):
        sha256 = hashlib.sha256(Path("pictures", name).read_bytes()).hexdigest()
        verdict = Verdict(
            path=f"pictures/{name}", action="block", findings=(), policy="", model="", sha256=sha256
        )
        outcome = folder.move(verdict)
        print(outcome.result, outcome.reason)
"""
    command = [sys.executable, "-c", program, home, other]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "not moved File too large\nmoved None\n", done.stderr
    assert tree(other).keys() == {"pictures/a.png"}
    assert results(undo(other)) == ["restored"]
    assert tree(home) == before


def test_a_journal_that_cannot_be_written_moves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(home)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with BlockedFolder(tmp_path / "blocked", root=home) as folder:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ClipError, match=r"moves.jsonl: cannot be written \(No space left on device\), so nothing"):
            folder.move(judged(home / "pictures" / "a.png"))
        monkeypatch.undo()
    assert tree(home) == before
    assert results(undo(tmp_path / "blocked")) == []  # what was written down was not begun


def test_what_is_no_journal_is_an_error(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no moves.jsonl; name the folder that was given as --move-blocked"):
        list(undo(tmp_path))
    for line in ('{"event": "move"}', "[]", '{"version": 2, "event": "move"}', "3"):
        (tmp_path / JOURNAL).write_text(f"\n{line}\n")
        with pytest.raises(DataError, match=r"moves.jsonl, line 2: is no record of a move, or one of a later version"):
            list(undo(tmp_path))
    with pytest.raises(ClipError, match="pictures cannot be moved there"):
        BlockedFolder(home / "pictures" / "a.png")


# Between file systems -------------------------------------------------------------------------------------------------


def _two_file_systems(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes believe that a folder is on another one than all else."""
    rename, inside = os.rename, os.path.realpath(folder)

    def crossing(source: Any, destination: Any) -> None:
        if str(source).startswith(inside) != str(destination).startswith(inside):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        rename(source, destination)

    monkeypatch.setattr(os, "rename", crossing)


def _no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def _another_file_system(tmp_path: Path) -> Path:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev or not os.access(shared, os.W_OK):
        pytest.skip("there is one file system only")
    folder = Path(subprocess.check_output(["mktemp", "-d", "-p", shared], text=True).strip())
    _MADE.append(folder)
    return folder


_MADE: list[Path] = []


@pytest.fixture(autouse=True)
def _no_traces() -> Iterator[None]:
    yield
    import shutil

    while _MADE:
        shutil.rmtree(_MADE.pop())


def test_between_two_file_systems_mode_time_and_contents_are_kept(home: Path, tmp_path: Path) -> None:
    other, before = _another_file_system(tmp_path), tree(home)
    assert results(move(home, other, "a.png", "inside/a.png")) == ["moved", "moved"]
    assert tree(other) == {name: before[name] for name in ("pictures/a.png", "pictures/inside/a.png")}
    assert tree(home).keys() == {"pictures/b.png"}
    assert results(undo(other)) == ["restored", "restored"]
    assert tree(home) == before


# Killed between any two calls of the system ---------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing happens to the disk after this."""


def _kill_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """The process is dead from its n-th change of the disk on: that one is made, and none after it."""
    left = calls

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            result = call(*arguments, **options)
            if left == 0:
                raise Killed
            return result

        return wrapper

    for name in ("rename", "link", "unlink", "mkdir", "rmdir", "fsync"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    monkeypatch.setattr(relocation.shutil, "copystat", dying(relocation.shutil.copystat))


def _exactly_once(home: Path, blocked: Path, before: dict[str, tuple[bytes, int, int]]) -> None:
    found = sorted([*tree(home).values(), *tree(blocked).values()])
    assert found == sorted(before.values())
    assert not [*home.rglob("*.part"), *blocked.rglob("*.part")]


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("crosses", [True, False])
@pytest.mark.parametrize("doing", ["move", "undo", "recover"])
def test_killed_anywhere_every_picture_is_there_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: str, crosses: bool, has_links: bool
) -> None:
    blocked, before = tmp_path / "blocked", tree(home)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a call to die after, and no time spent on it
    ended = 0
    for calls in range(1, 200):
        told: list[Outcome] = []

        def in_a_process(calls: int, work: Callable[[], object], told: list[Outcome] = told) -> bool:
            """Whether it was over before so many calls."""
            with pytest.MonkeyPatch.context() as patch:
                if not has_links:
                    _no_links(patch)
                if crosses:
                    _two_file_systems(patch, blocked)
                _kill_after(patch, calls)
                try:
                    work()
                except Killed:
                    return False
            return True

        def do_move(told: list[Outcome] = told) -> None:
            move(home, blocked, "a.png", "inside/a.png", on_outcome=told.append)

        def do_undo(told: list[Outcome] = told) -> None:
            list(undo(blocked, on_outcome=told.append))

        if doing == "move":
            is_over = in_a_process(calls, do_move)
        elif doing == "undo":
            assert in_a_process(10**6, do_move)
            is_over = in_a_process(calls, do_undo)
        else:  # killed in a move, and then in what ends it
            in_a_process(7 + calls % 11, do_move)
            is_over = in_a_process(calls // 4 + 1, lambda: BlockedFolder(blocked, root=home).__exit__())
        with BlockedFolder(blocked, root=home, on_outcome=told.append):
            pass
        _exactly_once(home, blocked, before)
        there = {Path(outcome.source): outcome.result for outcome in told}
        for path, result in there.items():  # what was told last is so
            assert path.exists() == (result in ("restored", "not moved")), (calls, told)
        moved = {path for path in map(home.joinpath, before) if not path.exists()}
        assert doing != "move" or moved == {path for path, result in there.items() if result == "moved"}
        assert in_a_process(10**6, do_undo)
        assert tree(home) == before, calls
        assert tree(blocked) == {}
        ended += is_over
        if is_over and (doing != "recover" or ended > 20):
            assert calls > 12, "there were fewer places to die in than there are"
            return
    raise AssertionError("it was never over")


def test_half_a_copy_is_removed(home: Path, tmp_path: Path) -> None:
    blocked, path = tmp_path / "blocked", home / "pictures" / "a.png"
    blocked.mkdir()
    identity, sha256 = relocation.file_facts(path)
    step = Step(
        id="1", source=path, destination=blocked / "a.png", how="copy", sha256=sha256, identity=Identity(*identity)
    )
    step.part.write_bytes(bytes(1000))
    assert settle(step) == "it was interrupted before it was moved"
    assert not step.part.exists()
    step.part.write_bytes(bytes(1000))
    path.unlink()  # by somebody else
    assert settle(step) == "it is neither there nor here any more"
    step.part.write_bytes(bytes(3000))
    assert settle(step) is None  # what is whole is kept, since there is no other
    assert step.destination.read_bytes() == bytes(3000)


def test_what_was_taken_and_is_not_what_was_meant_goes_back(home: Path, tmp_path: Path) -> None:
    blocked, path = tmp_path / "blocked", home / "pictures" / "a.png"
    blocked.mkdir()
    identity, sha256 = relocation.file_facts(path)
    step = Step(id="1", source=path, destination=blocked / "a.png", how="rename", sha256=sha256, identity=identity)
    path.unlink()
    step.part.write_bytes(b"edited")
    assert settle(step) is not None
    assert path.read_bytes() == b"edited"
    step.part.write_bytes(b"edited once more")
    assert settle(step) is not None
    assert path.read_bytes() == b"edited"
    assert path.with_name("a (2).png").read_bytes() == b"edited once more"
    assert list(blocked.iterdir()) == []


def test_an_unfinished_line_of_the_journal_was_never_acted_upon(home: Path, tmp_path: Path) -> None:
    before, blocked = tree(home), tmp_path / "blocked"
    move(home, blocked, "a.png")
    with (blocked / JOURNAL).open("ab") as journal:
        journal.write(b'{"time": "2026-')
    assert results(move(home, blocked, "b.png")) == ["moved"]
    assert results(undo(blocked)) == ["restored", "restored"]
    assert tree(home) == before


def test_ctrl_c_leaves_nothing_half_way(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, place = tree(home), relocation.place

    def interrupted(part: Path, name: Path) -> None:
        monkeypatch.setattr(relocation, "place", place)
        raise KeyboardInterrupt

    monkeypatch.setattr(relocation, "place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        move(home, tmp_path / "blocked", "a.png")
    _exactly_once(home, tmp_path / "blocked", before)
    assert [outcome.result for outcome in undo(tmp_path / "blocked")] == ["restored"]  # Ctrl-C lets it come to its end
    assert tree(home) == before


# Several at once ------------------------------------------------------------------------------------------------------


def test_two_that_move_the_same_pictures_at_once(home: Path, tmp_path: Path) -> None:
    for number in range(30):
        (home / "pictures" / f"{number}.png").write_bytes(bytes([number]) * 100)
    before, blocked = tree(home), tmp_path / "blocked"
    verdicts = [judged(path) for path in sorted(home.rglob("*.png"))]
    outcomes: list[list[Outcome]] = [[], []]

    def run(which: int) -> None:
        with BlockedFolder(blocked, root=home) as folder:
            assert folder.recovered == ()
            for verdict in verdicts[:: 1 - 2 * which]:
                outcomes[which].append(folder.move(verdict))

    threads = [threading.Thread(target=run, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moved = [outcome.source for both in outcomes for outcome in both if outcome.is_done]
    assert sorted(moved) == sorted(verdict.path for verdict in verdicts)
    _exactly_once(home, blocked, before)
    assert len(list(undo(blocked))) == len(verdicts)
    assert tree(home) == before


def test_numbered_names_are_never_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + ".jpeg")
    path.touch()
    name = next(without_names_in_use(path)).name
    assert name.endswith(" (2).jpeg")
    assert 250 <= len(os.fsencode(name)) <= 255
