"""``clip.Index``: made, filled, searched and described, with a tiny model in a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip
from clip.errors import ConfigError, DataError, ImageError, IndexNotFoundError
from clip.model import CLIP, CLIPConfig
from clip.search.changes import Failed, Kept
from clip.search.encoder import Encoder
from clip.search.index import Index, default_address
from clip.search.store import Condition, Row, open_store

TINY = CLIPConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=16,
    context_length=16,
    transformer_width=64,
    transformer_layers=1,
)


def _model(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    clip.save(CLIP.from_config(TINY).eval(), path)
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _model(tmp_path_factory.mktemp("model") / "tiny.safetensors", 0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(6):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def index(tiny: str, pictures: Path, tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index", model=tiny, create=True) as index:
        report = index.add(pictures)
        assert (report.added, report.embedded, len(index)) == (6, 6, 6)
        yield index


def test_an_index_is_found_again_with_its_model(index: Index, tiny: str) -> None:
    with Index.open(index.address) as again:
        assert (again.about.model, len(again)) == (tiny, 6)
        assert again.about == index.about
        assert not again.encoder.is_loaded


def test_what_is_not_there_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError, match="no index is there; make one with 'clip index FOLDER --into"):
        Index.open(tmp_path / "nowhere")
    open_store(str(tmp_path / "begun"), embed_dim=16).close()  # a process that ended before it described the index
    with pytest.raises(IndexNotFoundError):
        Index.open(tmp_path / "begun")


def test_a_model_with_a_short_context_can_have_an_index_that_was_begun(tmp_path: Path, tiny: str) -> None:
    open_store(str(tmp_path / "begun"), embed_dim=16).close()
    with Index.open(tmp_path / "begun", model=tiny, create=True) as index:
        assert index.about.embed_dim == 16


def test_every_picture_finds_itself_first(index: Index, pictures: Path) -> None:
    for path in sorted(pictures.iterdir()):
        results = index.search(images=[str(path)], k=2)
        assert results.hits[0].path == str(path)
        assert results.hits[0].similarity == pytest.approx(1, abs=2e-3)
        assert (results.considered, results.total, results.reason) == (6, 6, None)
        named = index.search(f'+"{path}"', k=2)
        assert [hit.path for hit in named.hits] == [hit.path for hit in results.hits]


def test_words_and_pictures_together_order_by_both(index: Index, pictures: Path) -> None:
    path = str(pictures / "3.png")
    by_words = index.search("a dog", k=6).hits
    both = index.search("a dog^0.01", images=[Path(path).read_bytes()], k=6)
    assert both.query == 'a dog^0.01 AND +"image 1"'
    assert both.hits[0].path == path
    assert {hit.path for hit in both.hits} == {hit.path for hit in by_words}
    assert list(both.hits) == sorted(both.hits, key=lambda hit: -hit.score)


def test_conditions_come_before_the_best_are_taken(index: Index, pictures: Path) -> None:
    worst = index.search("a dog", k=6).hits[-1].path
    results = index.search("a dog", k=1, where=[Condition("path", "=", worst)])
    assert ([hit.path for hit in results.hits], results.considered) == ([worst], 1)


def test_an_empty_answer_says_why(index: Index, tiny: str, tmp_path: Path) -> None:
    results = index.search("a dog", where=[Condition("path", "glob", "/nowhere/*")])
    assert (results.hits, results.reason) == ((), "none of the 6 pictures fulfils the conditions")
    results = index.search("a dog", min_match=1)
    assert results.reason is not None
    assert results.reason.startswith("no picture is likely enough to match: the best, ")
    with Index.open(tmp_path / "empty", model=tiny, create=True) as empty:
        assert empty.search("a dog").reason == "the index is empty"


def test_near_duplicates_are_folded_into_the_best(index: Index, pictures: Path) -> None:
    original = pictures / "2.png"
    Image.open(original).save(pictures / "again.jpg", quality=95)
    shutil.copy(original, pictures / "copy.png")
    report = index.add(pictures)
    assert (report.added, report.copied, report.embedded) == (1, 1, 1)
    results = index.search(images=[str(original)], k=2)
    assert {results.hits[0].path, *results.hits[0].alike} == {
        str(pictures / name) for name in ("2.png", "again.jpg", "copy.png")
    }
    alone = index.search(images=[str(original)], k=3, group=False)
    assert len(alone.hits) == 3
    assert not any(hit.alike for hit in alone.hits)


def test_as_many_hits_as_there_are_groups_for(index: Index, pictures: Path) -> None:
    for number in range(30):
        shutil.copy(pictures / "1.png", pictures / f"copy{number}.png")
    index.add(pictures)
    hits = index.search(images=[str(pictures / "1.png")], k=3).hits
    assert len(hits) == 3
    assert len(hits[0].alike) == 30


def test_other_weights_are_refused_when_they_are_used(index: Index, pictures: Path, tmp_path: Path) -> None:
    other = _model(tmp_path / "other.safetensors", 1)
    Image.new("RGB", (40, 40), "red").save(pictures / "red.png")
    with Index.open(index.address, model=other) as wrong:
        for use in (
            lambda: wrong.search("a dog"),
            lambda: wrong.search(images=[str(pictures / "red.png")]),
            lambda: wrong.add(pictures),
        ):
            with pytest.raises(ConfigError, match=r"holds embeddings of .*tiny.* not of .*other.*--re-embed --model"):
                use()
    assert len(index) == 6


def test_the_same_weights_in_another_file_are_welcome(index: Index, tiny: str, tmp_path: Path) -> None:
    copied = str(shutil.copy(tiny, tmp_path / "copied.safetensors"))
    with Index.open(index.address, model=copied) as same:
        assert [hit.path for hit in same.search("a dog").hits] == [hit.path for hit in index.search("a dog").hits]


def test_weights_that_changed_under_their_name_are_refused(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "mine.safetensors"
    _model(path, 0)
    with Index.open(tmp_path / "index", model=str(path), create=True) as index:
        index.add(pictures)
    path.unlink()
    _model(path, 1)
    with Index.open(tmp_path / "index") as index, pytest.raises(ConfigError, match="holds embeddings of"):
        index.search("a dog")


def test_a_file_that_is_known_is_not_read_for_its_fingerprint(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "fingerprint", property(lambda self: pytest.fail("the weights were read")))
    with Index.open(index.address) as again:
        assert again.search("a dog").hits


def test_queries_that_are_none(index: Index, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the query is empty"):
        index.search("")
    with pytest.raises(ConfigError, match="k is 0"):
        index.search("a dog", k=0)
    with pytest.raises(ConfigError, match="min_match is 2; it is a probability"):
        index.search("a dog", min_match=2)
    with pytest.raises(ImageError, match="nowhere"):
        index.search(images=[str(tmp_path / "nowhere.png")])
    with pytest.raises(clip.errors.TextTooLongError, match="shorten it"):
        index.search("dog " * 40)


def test_remove_forgets_and_leaves_the_files(index: Index, pictures: Path) -> None:
    path = str(pictures / "0.png")
    assert index.remove([path, "/nowhere.png"]) == 1
    assert Path(path).exists()
    assert path not in {hit.path for hit in index.search("a dog").hits}


def test_embeddings_without_an_origin_have_to_be_claimed(index: Index, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = tmp_path / "embeddings.parquet"
    vectors = np.eye(2, 16, dtype=np.float32).tolist()
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.jpg", "b.jpg"], "embedding": vectors}), table)
    with pytest.raises(ConfigError, match="does not say which model"):
        index.add(table)
    assert index.add(table, is_claimed=True).added == 2
    assert len(index) == 8


class _Watching:
    def __init__(self) -> None:
        self.shown: list[tuple[str, int | None]] = []
        self.advanced = 0
        self.failures: list[Failed] = []
        self.away: list[Kept] = []

    @contextmanager
    def showing(self, what: str, total: int | None) -> Iterator[None]:
        self.shown.append((what, total))
        yield

    def advance(self, count: int) -> None:
        self.advanced += count

    def failed(self, failed: Failed) -> None:
        self.failures.append(failed)

    def kept(self, kept: Kept) -> None:
        self.away.append(kept)


def test_a_watcher_is_told(index: Index, pictures: Path) -> None:
    (pictures / "none.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 40), "red").save(pictures / "red.png")
    watcher = _Watching()
    report = index.add(watcher=watcher)  # all folders that it knows
    assert (report.added, report.unchanged) == (1, 6)
    assert watcher.shown == [("Indexing", 2)]
    assert watcher.advanced == 2
    assert (
        [failed.path for failed in watcher.failures]
        == [str(pictures / "none.png")]
        == [failed.path for failed in report.failed]
    )
    pictures.rename(pictures.with_name("away"))
    report = index.add(watcher=watcher)
    assert ([kept.pictures for kept in watcher.away], len(index)) == ([7], 7)
    assert (index.add(remove_missing=True).removed, len(index)) == (7, 0)


def test_without_a_folder_there_must_be_known_ones(tiny: str, tmp_path: Path) -> None:
    with (
        Index.open(tmp_path / "index", model=tiny, create=True) as index,
        pytest.raises(ConfigError, match="no folder was indexed yet"),
    ):
        index.add()


def test_the_sample_of_the_index_follows_its_growth(index: Index) -> None:
    before = index.background.sample
    assert len(before) == 6
    some = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    index.store.add([Row(path=f"x{number}") for number in range(40)], some)
    index.refresh()
    assert len(index.background.sample) == 46
    index.store.remove(["x0"])
    index.refresh()
    assert len(index.background.sample) == 46  # nearly the same index


def test_a_later_version_is_told(index: Index) -> None:
    document = json.loads(index.about.to_bytes()) | {"version": 2}
    index.store.write_document("about", json.dumps(document).encode())
    with pytest.raises(DataError, match="is everyclip-index version 2; this everyclip reads everyclip-index 1"):
        Index.open(index.address)


def test_the_default_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_INDEX", "/somewhere")
    assert default_address() == "/somewhere"
    monkeypatch.delenv("CLIP_INDEX")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_address() == "/data/everyclip/index"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/users/someone")
    assert default_address() == "/users/someone/.local/share/everyclip/index"


def test_an_index_that_cannot_be_used_is_closed_again(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    real = type(index.store).close

    def close(store: object) -> None:
        closed.append("store")
        real(store)  # type: ignore[arg-type]

    monkeypatch.setattr(type(index.store), "close", close)
    index.store.write_document("about", b"no JSON")
    with pytest.raises(DataError, match="its description cannot be read"):
        Index.open(index.address)
    assert closed == ["store"]
