"""Files of embeddings: what is whole, what is resumed, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from clip.embedding_files import EmbeddingWriter, read_embeddings
from clip.errors import ClipError, ConfigError, DataError, MissingDependencyError
from clip.features import Encoded, Failure

ABOUT = {"fingerprint": "f00d"}


def writer(path: Path, **options: object) -> EmbeddingWriter:
    return EmbeddingWriter(path, **{"embed_dim": 3, "about": ABOUT, **options})  # type: ignore[arg-type]


def batch(*positions: int, offset: int = 0) -> Encoded[str]:
    rows = np.array([[p + offset, 0, 0] for p in positions], np.float32)
    return Encoded(list(positions), [f"{p + offset}.png" for p in positions], rows)


def failure(position: int, offset: int = 0) -> Failure[str]:
    return Failure(position, f"{position + offset}.png", ClipError("bad"))


def test_rows_are_what_the_sidecar_says(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with writer(path, model="tiny") as file:
        file.fail(failure(1))
        file.add(batch(0, 2))
        file.add(batch(3))
        file.fail(failure(4))
        assert not path.exists()
        file.finish()
    stored = read_embeddings(path)
    assert stored.embeddings.dtype == np.float32
    assert stored.embeddings[:, 0].tolist() == [0, 2, 3]
    assert stored.sources == ["0.png", "2.png", "3.png"]
    assert stored.failures == {"1.png": "bad", "4.png": "bad"}
    assert stored.about == {
        **{"format": "everyclip-embeddings", "version": 1, "embed_dim": 3, "model": "tiny"},
        **ABOUT,
    }
    lines = [json.loads(line) for line in (tmp_path / "a.npy.jsonl").read_text().splitlines()[1:]]
    assert [line["source"] for line in lines] == [f"{i}.png" for i in range(5)]  # in the order of the stream
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.npy", "a.npy.jsonl"]


def test_an_empty_stream_gives_an_empty_file(tmp_path: Path) -> None:
    with writer(tmp_path / "a.npy") as file:
        file.finish()
    assert read_embeddings(tmp_path / "a.npy").embeddings.shape == (0, 3)


@pytest.mark.parametrize("torn", [b"", b'{"row": 2, "sour'])
def test_what_was_stored_is_not_asked_for_again(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.npy"
    with writer(path) as file:
        file.fail(failure(0))
        file.add(batch(1, 2))  # and here the process ends
    with (tmp_path / "a.npy.part").open("ab") as part:
        part.write(b"half a row that no line belongs to")
    with (tmp_path / "a.npy.part.jsonl").open("ab") as journal:
        journal.write(torn)
    names = [f"{i}.png" for i in range(5)]
    with writer(path) as file:
        assert (file.resumed, file.rows, file.failed) == (3, 2, 1)
        assert list(file.remaining(names)) == names[3:]
        file.add(batch(0, 1, offset=3))
        file.finish()
    stored = read_embeddings(path)
    assert stored.embeddings[:, 0].tolist() == [1, 2, 3, 4]
    assert stored.sources == names[1:]


def test_a_list_that_changed_is_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "a.npy") as file:
        file.add(batch(0, 1))
    with writer(tmp_path / "a.npy") as file:
        with pytest.raises(DataError, match=r"item 2 was '1.png', now it is 'new.png'"):
            list(file.remaining(["0.png", "new.png", "1.png"]))
        with pytest.raises(DataError, match="now it is None"):
            list(file.remaining(["0.png"]))
    with writer(tmp_path / "a.npy", restart=True) as file:
        assert file.resumed == 0
        assert list(file.remaining(["new.png"])) == ["new.png"]
        file.add(batch(7))
        file.finish()
    assert read_embeddings(tmp_path / "a.npy").sources == ["7.png"]


def test_another_model_does_not_continue(tmp_path: Path) -> None:
    with writer(tmp_path / "a.npy") as file:
        file.add(batch(0))
    with pytest.raises(DataError, match="another fingerprint"), writer(tmp_path / "a.npy", about={"fingerprint": "x"}):
        pass
    with pytest.raises(DataError, match="another embed_dim"), writer(tmp_path / "a.npy", embed_dim=4):
        pass
    with writer(tmp_path / "a.npy", model="the same under another name") as file:
        assert file.resumed == 1


def test_rows_that_went_missing_are_told(tmp_path: Path) -> None:
    with writer(tmp_path / "a.npy") as file:
        file.add(batch(0, 1))
    (tmp_path / "a.npy.part").write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes, fewer than the 2 rows"), writer(tmp_path / "a.npy"):
        pass


def test_a_finished_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with writer(path) as file:
        file.finish()
    with pytest.raises(ConfigError, match="there already"):
        writer(path)
    with writer(path, overwrite=True) as file:
        file.add(batch(5))
        assert read_embeddings(path).sources == []  # the old one, until the new is whole
        file.finish()
    assert read_embeddings(path).sources == ["5.png"]


def test_a_process_that_ended_between_the_last_two_steps_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npy"
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == path:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), writer(path) as file:
        file.add(batch(0, 1))
        patch.setattr(Path, "replace", killed)
        file.finish()
    assert not path.exists()
    with writer(path) as file:
        assert list(file.remaining(["0.png", "1.png"])) == []
        file.finish()
    assert read_embeddings(path).sources == ["0.png", "1.png"]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with writer(path), pytest.raises(ConfigError, match="another process is writing"), writer(path):
        pass


def test_a_name_or_folder_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.npy or \.parquet"):
        writer(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=r"gone does not exist; create it"):
        writer(tmp_path / "gone" / "a.npy")
    assert list(tmp_path.iterdir()) == []


def test_parquet_holds_sources_and_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with writer(path) as file:
        file.add(Encoded([0, 1], ["ü.png", "b\udcff.png"], np.array([[1, 2, 3], [4, 5, 6]], np.float32)))
        file.fail(failure(2))
        file.finish()
    table = pyarrow.parquet.read_table(path)
    assert table.column("embedding").to_pylist() == [[1, 2, 3], [4, 5, 6]]
    assert table.column("source").to_pylist() == ["ü.png", r"b\udcff.png"]
    assert json.loads(table.schema.metadata[b"everyclip-embeddings"])["fingerprint"] == "f00d"
    lines = (tmp_path / "a.parquet.jsonl").read_text().splitlines()
    assert json.loads(lines[2])["source"] == "b\udcff.png"  # the sidecar keeps the bytes
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.parquet", "a.parquet.jsonl"]


def test_an_empty_parquet(tmp_path: Path) -> None:
    with writer(tmp_path / "a.parquet") as file:
        file.finish()
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").num_rows == 0


def test_without_pyarrow_parquet_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"everyclip\[parquet\]"):
        writer(tmp_path / "a.parquet")


def test_files_that_do_not_belong_together_are_told(tmp_path: Path) -> None:
    with writer(tmp_path / "a.npy") as file:
        file.add(batch(0))
        file.finish()
    np.save(tmp_path / "a.npy", np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(DataError, match=r"\(2, 3\), a.npy.jsonl has 1 rows"):
        read_embeddings(tmp_path / "a.npy")
    (tmp_path / "a.npy.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_embeddings(tmp_path / "a.npy")
