"""An index follows its folders exactly, whatever happens to them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mean_colours import MeanColours, embedding_of, empty_index
from PIL import Image

from clip.search import changes, indexing
from clip.search.changes import Report, find_changes, read_roots
from clip.search.indexing import add_items, apply_changes, update_folders
from clip.search.items import Item
from clip.search.store import Condition, Row, Store


def contents(number: int) -> bytes:
    """A picture of its own, of the same number of bytes as all others."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(file, "BMP")
    return file.getvalue()


class Folder:
    """Files whose times are all different: what changes twice within a tick of the clock is another matter."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = 10**18

    def write(self, name: str, number: int) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents(number))
        return self.touch(path)

    def touch(self, path: Path) -> Path:
        self.clock += 1000
        os.utime(path, ns=(self.clock, self.clock))
        return path

    def files(self) -> set[Path]:
        return {Path(at) / name for at, _, names in os.walk(self.root) for name in names}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "pictures").mkdir()
    return Folder(tmp_path / "pictures")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with empty_index(tmp_path / "index") as store:
        yield store


@pytest.fixture
def encoder() -> MeanColours:
    return MeanColours()


def rows_of(store: Store) -> dict[str, tuple[Row, np.ndarray[Any, Any]]]:
    found = {}
    for part in store.scan():
        for row, embedding in zip(part.rows, part.embeddings, strict=True):
            assert row.path not in found
            found[row.path] = row, embedding
    return found


def check(store: Store, files: set[Path]) -> None:
    """The index has exactly these files, as they are now."""
    rows = rows_of(store)
    assert set(rows) == {str(path) for path in files}
    for path, (row, embedding) in rows.items():
        status = Path(path).stat()
        assert (row.size_bytes, row.modified_ns) == (status.st_size, status.st_mtime_ns)
        assert row.digest == hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
        assert (row.width, row.height, row.format) == (16, 16, "BMP") and row.signature is not None
        assert np.abs(embedding - embedding_of(Path(path))).max() < 1e-3


def counts(report: Report) -> dict[str, int]:
    """Those that are not zero."""
    numbers = {name: value for name, value in report.to_dict().items() if isinstance(value, int)}
    return {name: value for name, value in numbers.items() if value}


# Changes of files -----------------------------------------------------------------------------------------------------


def test_each_change_is_followed_and_counted(folder: Folder, store: Store, encoder: MeanColours) -> None:
    paths = [folder.write(f"{name}.bmp", number) for number, name in enumerate("abcdefg")]
    report = update_folders(store, encoder, [str(folder.root)])
    assert counts(report) == {"added": 7, "embedded": 7}
    check(store, folder.files())

    assert counts(update_folders(store, encoder)) == {"unchanged": 7}
    assert encoder.encoded == 7

    folder.write("a.bmp", 100)  # changed
    folder.touch(paths[1])
    (folder.root / "sub").mkdir()
    paths[2].rename(folder.root / "sub" / "moved.bmp")
    shutil.copy2(paths[3], folder.root / "copy.bmp")
    paths[4].unlink()
    folder.write("h.bmp", 101)
    report = update_folders(store, encoder)
    assert counts(report) == {
        "changed": 1, "touched": 1, "renamed": 1, "copied": 1, "removed": 1, "added": 1, "unchanged": 3, "embedded": 2
    }  # fmt: skip
    check(store, folder.files())
    assert report.seconds.total > 0


def test_a_folder_that_moves_costs_no_model(folder: Folder, store: Store, encoder: MeanColours) -> None:
    for number in range(20):
        folder.write(f"old/{number}.bmp", number)
    folder.write("stays.bmp", 30)
    update_folders(store, encoder, [str(folder.root)])
    (folder.root / "old").rename(folder.root / "a new name")
    assert counts(update_folders(store, encoder)) == {"renamed": 20, "unchanged": 1}
    check(store, folder.files())


def test_pictures_that_change_places(folder: Folder, store: Store, encoder: MeanColours) -> None:
    """Each is where the other's embedding was: an embedding must not be taken from a row that has just been renewed."""
    paths = [folder.write(f"{name}.bmp", number) for number, name in enumerate("abcd")]
    update_folders(store, encoder, [str(folder.root)])
    for one, other in ((0, 1), (1, 2), (2, 3)):
        paths[one].rename(folder.root / "t")
        paths[other].rename(paths[one])
        (folder.root / "t").rename(paths[other])
        assert counts(update_folders(store, encoder))["changed"] == 2
        check(store, folder.files())


def test_an_embedding_is_not_taken_from_a_row_that_has_changed_meanwhile(
    folder: Folder, store: Store, encoder: MeanColours, tmp_path: Path
) -> None:
    first = folder.write("a.bmp", 1)
    update_folders(store, encoder, [str(folder.root)])
    shutil.copy2(first, folder.root / "b.bmp")
    found = find_changes(store)
    folder.write("a.bmp", 2)
    with empty_index(tmp_path / "index") as other:  # another process is faster
        update_folders(other, encoder, [str(first)])
    assert counts(apply_changes(store, encoder, found))["embedded"] == 1
    assert counts(update_folders(store, encoder)) == {"unchanged": 2}
    check(store, folder.files())


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_come_to_the_exact_state(
    seed: int, folder: Folder, store: Store, encoder: MeanColours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a dictionary, which knows what has to happen to each file and how often the model is needed."""
    if seed % 2:
        monkeypatch.setattr(indexing, "_STORE_SECONDS", 0.0)  # each batch at once, instead of all at the end
    rng = random.Random(seed)
    folder.write("always.bmp", 0)  # a folder without any pictures is another matter
    indexed: dict[Path, tuple[int, bytes]] = {}
    for _ in range(25):
        for _ in range(rng.randrange(8)):
            change(rng, folder)
        now = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.files()}
        expected = what_happens(indexed, now)
        before = encoder.encoded
        report = update_folders(store, encoder, [str(folder.root)], batch_size=rng.choice((1, 3, 32)), workers=2)
        found = counts(report)
        assert found.pop("embedded", 0) == encoder.encoded - before >= expected["embedded"]
        if not expected["changed"]:  # where pictures change places, some are embedded again
            assert encoder.encoded - before == expected["embedded"]
        assert found == {name: number for name, number in expected.items() if number and name != "embedded"}
        check(store, folder.files())
        indexed = now


def change(rng: random.Random, folder: Folder) -> None:
    some = rng.choice(sorted(folder.files() - {folder.root / "always.bmp"}) or [None])
    place = f"{rng.choice(('', 'x/', 'x/y/', 'z z/'))}{rng.randrange(40)}.bmp"
    kind = rng.choice(("write", "write", "write", "remove", "rename", "copy", "touch", "swap", "folder"))
    if kind == "write" or some is None:
        folder.write(place, rng.randrange(60))
    elif kind == "remove":
        some.unlink()
    elif kind == "touch":
        folder.touch(some)
    elif kind == "folder" and (folder.root / "x").exists():
        (folder.root / "x").rename(folder.root / f"x{rng.getrandbits(40)}")
    elif kind == "swap":
        other = rng.choice(sorted(folder.files()))
        some.rename(folder.root / "t")
        if other != some:
            other.rename(some)
        (folder.root / "t").rename(other)
    elif kind in ("rename", "copy"):
        target = folder.root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "rename":
            some.rename(target)
        elif target != some:
            shutil.copy2(some, target)


def what_happens(indexed: dict[Path, tuple[int, bytes]], now: dict[Path, tuple[int, bytes]]) -> Counter[str]:
    """How a run has to count the way from one state to another."""
    known = {data for _, data in indexed.values()}
    gone = Counter(indexed[path][1] for path in indexed if path not in now)
    new = Counter(now[path][1] for path in now if path not in indexed)
    renamed = sum((gone & new).values())
    told: Counter[str] = Counter(renamed=renamed, removed=sum(gone.values()) - renamed)
    told["copied"] = sum(number for data, number in new.items() if data in known) - renamed
    told["added"] = sum(number for data, number in new.items() if data not in known)
    for path in indexed.keys() & now.keys():
        if indexed[path] == now[path]:
            told["unchanged"] += 1
        else:
            told["touched" if indexed[path][1] == now[path][1] else "changed"] += 1
    pending = [data for path, (modified, data) in now.items() if indexed.get(path) != (modified, data)]
    told["embedded"] = sum(data not in known for data in pending)
    return told


# Nothing is lost ------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_away_is_not_taken_for_deleted_pictures(
    folder: Folder, store: Store, encoder: MeanColours, tmp_path: Path
) -> None:
    for number in range(3):
        folder.write(f"disk/{number}.bmp", number)
        folder.write(f"{number}.bmp", 10 + number)
    disk = folder.root / "disk"
    update_folders(store, encoder, [str(folder.root), str(disk)])
    assert read_roots(store) == [str(folder.root), str(disk)]
    disk.rename(tmp_path / "away")
    for _ in range(2):  # the folder of the disk may go with it, or stay behind empty
        report = update_folders(store, encoder, [str(folder.root)])
        assert [tuple(kept)[:2] for kept in report.kept] == [(str(disk), 3)]
        assert counts(report) == {"unchanged": 3} and store.count() == 6
        assert counts(update_folders(store, encoder)) == {"unchanged": 3}
        disk.mkdir(exist_ok=True)
    report = update_folders(store, encoder, [str(disk)])
    assert report.kept[0].reason == "is empty now" and counts(report) == {}
    assert counts(update_folders(store, encoder, [str(folder.root)], remove_missing=True)) == {
        "unchanged": 3,
        "removed": 3,
    }
    check(store, folder.files())


def test_a_disk_that_comes_back_is_as_it_was(
    folder: Folder, store: Store, encoder: MeanColours, tmp_path: Path
) -> None:
    folder.write("a.bmp", 1)
    update_folders(store, encoder, [str(folder.root)])
    folder.root.rename(tmp_path / "away")
    assert [kept.reason for kept in update_folders(store, encoder).kept] == ["is not there"]
    (tmp_path / "away").rename(folder.root)
    assert counts(update_folders(store, encoder)) == {"unchanged": 1}
    shutil.rmtree(folder.root)
    assert counts(update_folders(store, encoder, remove_missing=True)) == {"removed": 1}
    assert read_roots(store) == [] and store.count() == 0
    assert counts(update_folders(store, encoder)) == {}


def test_pictures_in_a_folder_that_cannot_be_read_stay(
    folder: Folder, store: Store, encoder: MeanColours, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("open/a.bmp", 1)
    closed = folder.write("closed/b.bmp", 2)
    update_folders(store, encoder, [str(folder.root)])
    scandir, lstat = os.scandir, os.lstat

    def guarded(path: str) -> Any:
        if path.endswith("closed"):
            raise OSError(5, "Input/output error", path)
        return scandir(path)

    def forgetful(path: Any) -> Any:  # as a network file system may say for a while
        if "closed" in str(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        return lstat(path)

    monkeypatch.setattr(os, "scandir", guarded)
    monkeypatch.setattr(os, "lstat", forgetful)
    report = update_folders(store, encoder, [str(folder.root)], remove_missing=True)
    assert [tuple(failed) for failed in report.failed] == [(str(closed.parent), "cannot be read (Input/output error)")]
    monkeypatch.undo()
    check(store, folder.files())


def test_a_file_that_is_there_is_not_removed_though_no_walk_comes_by(
    folder: Folder, store: Store, encoder: MeanColours
) -> None:
    folder.write("a.bmp", 1)
    hidden, other = folder.write(".hidden/b.bmp", 2), folder.write("c.data", 3)
    update_folders(store, encoder, [str(folder.root), str(hidden.parent), str(other)])
    check(store, {folder.root / "a.bmp", hidden, other})
    assert counts(update_folders(store, encoder, [str(folder.root)])) == {"unchanged": 1}
    check(store, {folder.root / "a.bmp", hidden, other})
    assert read_roots(store) == [str(folder.root), str(hidden.parent)]


def test_what_another_process_adds_again_is_not_removed(folder: Folder, store: Store, encoder: MeanColours) -> None:
    folder.write("a.bmp", 1)
    folder.write("b.bmp", 2).unlink()
    folder.write("b.bmp", 2)
    update_folders(store, encoder, [str(folder.root)])
    (folder.root / "b.bmp").unlink()
    found = find_changes(store)
    folder.write("b.bmp", 3)
    update_folders(store, encoder)
    apply_changes(store, encoder, found)
    check(store, folder.files())


def test_pictures_that_came_without_files_or_inside_of_one_stay(
    folder: Folder, store: Store, encoder: MeanColours
) -> None:
    folder.write("a.bmp", 1)
    shard = folder.root / "shard.tar"
    shard.touch()
    inside = Row(path=f"{shard}/b.bmp", digest=b"0" * 16)
    imported = Row(path=str(folder.root / "c.bmp"))
    store.add([inside, imported], np.eye(2, store.embed_dim, dtype=np.float32))
    update_folders(store, encoder, [str(folder.root)])
    assert set(rows_of(store)) == {str(folder.root / "a.bmp"), inside.path, imported.path}
    shard.unlink()
    assert counts(update_folders(store, encoder)) == {"unchanged": 1, "removed": 1}


def test_metadata_goes_with_a_picture(folder: Folder, store: Store, encoder: MeanColours) -> None:
    folder.write("keep.bmp", 9)
    names = ["changed.bmp", "touched.bmp", "renamed.bmp", "copied.bmp"]
    paths = [folder.write(name, number) for number, name in enumerate(names)]
    add_items(store, encoder, [Item(path=str(path), image=str(path), metadata={"of": path.stem}) for path in paths])
    folder.write("changed.bmp", 10)
    folder.touch(paths[1])
    paths[2].rename(folder.root / "new.bmp")
    shutil.copy2(paths[3], folder.root / "copy.bmp")
    update_folders(store, encoder, [str(folder.root)])
    check(store, folder.files())
    found = {Path(path).stem: row.metadata.get("of") for path, (row, _) in rows_of(store).items()}
    assert found == {
        "changed": "changed", "touched": "touched", "new": "renamed", "copied": "copied", "copy": None, "keep": None
    }  # fmt: skip


# Failures -------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_indexed_is_told_and_tried_again(folder: Folder, store: Store, encoder: MeanColours) -> None:
    good = folder.write("good.bmp", 1)
    damaged = folder.write("damaged.bmp", 2)
    update_folders(store, encoder, [str(folder.root)])
    before = rows_of(store)[str(damaged)][0]
    damaged.write_bytes(b"half of a pic")
    new = folder.write("new.bmp", 3)
    new.write_bytes(b"")
    flat = folder.root / "flat.png"
    Image.new("RGB", (9, 9), "black").save(flat)
    told: list[str] = []
    progress: list[int] = []
    found = find_changes(store)
    report = apply_changes(
        store, encoder, found, on_failure=lambda failed: told.append(failed.path), on_progress=progress.append
    )
    assert sorted(told) == sorted([str(damaged), str(new), str(flat)]) and sum(progress) == len(found.pending) == 3
    reasons = {Path(failed.path).name: failed.reason for failed in report.failed}
    assert reasons["new.bmp"] == "the file is empty; fetch or export it again"
    assert reasons["flat.png"] == "its features are not finite"
    rows = rows_of(store)
    assert set(rows) == {str(good), str(damaged)}
    assert rows[str(damaged)][0] == before  # the file may be half written; nothing is forgotten
    flat.unlink()
    folder.write("damaged.bmp", 4)
    folder.write("new.bmp", 5)
    assert counts(update_folders(store, encoder)) == {"changed": 1, "added": 1, "unchanged": 1, "embedded": 2}
    check(store, folder.files())


def test_a_root_that_never_was_is_a_failure(store: Store, encoder: MeanColours, tmp_path: Path) -> None:
    report = update_folders(store, encoder, [str(tmp_path / "nowhere")])
    assert [tuple(failed) for failed in report.failed] == [
        (str(tmp_path / "nowhere"), "cannot be read (No such file or directory)")
    ]
    assert read_roots(store) == [] and not report.kept


def test_an_error_of_the_model_ends_the_run_and_loses_nothing_that_was_stored(
    folder: Folder, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_STORE_SECONDS", 0.0)
    for number in range(30):
        folder.write(f"{number:02}.bmp", number)

    class Fails(MeanColours):
        def encode(self, sources: Any, **options: Any) -> Any:
            if self.encoded >= 10:
                raise RuntimeError("the model fails")
            return super().encode(sources, **options)

    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="the model fails"):
        update_folders(store, Fails(), [str(folder.root)], batch_size=5)
    assert threading.active_count() == threads
    assert store.count() == 10
    encoder = MeanColours()
    assert counts(update_folders(store, encoder)) == {"unchanged": 10, "added": 20, "embedded": 20}
    check(store, folder.files())


# Several at once ------------------------------------------------------------------------------------------------------


def test_what_another_process_has_stored_meanwhile_is_not_embedded_again(
    folder: Folder, store: Store, encoder: MeanColours, tmp_path: Path
) -> None:
    for number in range(9):
        folder.write(f"{number}.bmp", number)
    found = find_changes(store, [str(folder.root)])
    with empty_index(tmp_path / "index") as other:
        update_folders(other, MeanColours(), [str(folder.root)])
    assert counts(apply_changes(store, encoder, found)) == {"unchanged": 9} and encoder.encoded == 0
    check(store, folder.files())


def test_two_at_once_on_overlapping_folders_while_a_third_reads(
    folder: Folder, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_STORE_SECONDS", 0.0)
    for number in range(60):
        folder.write(f"{number % 3}/{number:02}.bmp", number)
    done = threading.Event()
    problems: list[BaseException] = []

    def indexer(*roots: str) -> Callable[[], None]:
        def run() -> None:
            with empty_index(tmp_path / "index") as own:
                update_folders(own, MeanColours(), [str(folder.root / root) for root in roots], batch_size=4)

        return run

    def reader() -> None:
        with empty_index(tmp_path / "index") as own:
            seen = 0
            while not done.is_set():
                count = own.count()
                assert count >= seen  # a scan may miss a row that is being replaced
                rows = rows_of(own)  # checks that there are no two of a path
                assert all(np.abs(np.linalg.norm(embedding) - 1) < 1e-2 for _, embedding in rows.values())
                seen = count

    def caught(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # raised below, in the thread of the test
                problems.append(error)

        return run

    writers = [threading.Thread(target=caught(indexer(*roots))) for roots in (("0", "1"), ("1", "2"), ("",))]
    watcher = threading.Thread(target=caught(reader))
    for thread in (watcher, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    watcher.join()
    assert not problems, problems
    check(store, folder.files())
    assert read_roots(store) == [str(folder.root), *(str(folder.root / name) for name in "012")]


# Items of other sources -----------------------------------------------------------------------------------------------


def test_items_are_added_once(folder: Folder, store: Store, encoder: MeanColours) -> None:
    path = folder.write("a.bmp", 0)
    items = [
        Item(path="shard.tar/a.bmp", image=contents(1), modified_ns=5, metadata={"caption": "one"}),
        Item(path="shard.tar/b.bmp", image=contents(2), modified_ns=5),
        Item(path=str(path), image=str(path)),
        Item(path="bad", image=b"bad"),
    ]
    report = add_items(store, encoder, iter(items))
    assert counts(report) == {"added": 3, "embedded": 3, "failed": 1}
    rows = rows_of(store)
    assert rows["shard.tar/a.bmp"][0].metadata == {"caption": "one"}
    assert (rows[str(path)][0].size_bytes, rows[str(path)][0].modified_ns) == (len(contents(0)), 10**18 + 1000)
    assert counts(add_items(store, encoder, iter(items))) == {"unchanged": 3, "failed": 1}
    changed = dataclasses.replace(items[0], image=contents(3), modified_ns=6)
    assert counts(add_items(store, encoder, [changed])) == {"changed": 1, "embedded": 1}
    assert store.count([Condition("path", "=", "shard.tar/a.bmp")]) == 1
    assert counts(update_folders(store, encoder, [str(path)])) == {"unchanged": 1}


def test_only_a_few_items_are_read_ahead(store: Store, encoder: MeanColours, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source may have no end, and a killed run has little to do again."""
    monkeypatch.setattr(indexing, "_STORE_SECONDS", 0.0)
    taken = 0

    def endless() -> Iterator[Item]:
        nonlocal taken
        while True:
            taken += 1
            assert taken - store.count() <= 2 * 4 + 4 + 1  # the window, the batch, and the one in hand
            if taken > 100:
                raise EOFError
            yield Item(path=str(taken), image=contents(taken))

    with pytest.raises(EOFError):
        add_items(store, encoder, endless(), batch_size=4)
    assert store.count() >= 100 - 13


def test_nothing_new_needs_no_pixels(folder: Folder, store: Store, encoder: MeanColours) -> None:
    folder.write("a.bmp", 1)
    update_folders(store, encoder, [str(folder.root)])

    class NoModel:
        name = "mean-colours"

        def encode(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("the model was asked")

    folder.touch(folder.root / "a.bmp")
    shutil.copy2(folder.root / "a.bmp", folder.root / "b.bmp")
    assert counts(update_folders(store, NoModel())) == {"touched": 1, "copied": 1}
    assert counts(update_folders(store, NoModel())) == {"unchanged": 2}
    check(store, folder.files())


def test_reports_add_up() -> None:
    one, other = Report(added=1, unchanged=2), Report(added=3)
    other.failed.append(changes.Failed("a", "b"))
    other.seconds.model = 2.0
    one.include(other)
    assert (one.added, one.unchanged, one.failed, one.seconds.model) == (4, 2, other.failed, 2.0)
