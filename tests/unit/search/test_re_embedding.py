"""Another model for an index: whole, or not at all."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip
from clip.model import CLIP
from clip.search.documents import read_about
from clip.search.encoder import Encoder
from clip.search.index import Index
from clip.search.indexing import add_items, update_folders
from clip.search.items import Item
from clip.search.re_embedding import re_embed
from clip.search.seen import Seen
from clip.search.sources import open_source


def write(path: Path, number: int) -> Path:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def models(tmp_path: Path, tiny_vit: CLIP, tiny_resnet: CLIP) -> tuple[str, str]:
    paths = str(tmp_path / "one.safetensors"), str(tmp_path / "other.safetensors")
    clip.save(tiny_vit, paths[0])
    clip.save(tiny_resnet, paths[1])
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        write(tmp_path / "pictures" / f"{number}.png", number)
    return tmp_path / "pictures"


@pytest.fixture
def index(tmp_path: Path, folder: Path, models: tuple[str, str]) -> Iterator[Index]:
    with Index.open(tmp_path / "index", model=models[0], create=True) as index:
        update_folders(index.store, index.encoder, [str(folder)])
        yield index


def of(index: Index) -> tuple[str, dict[str, np.ndarray]]:
    """The model and the embeddings of whoever opens the index now."""
    with Index.open(index.address) as opened:
        embeddings = {
            row.path: embedding
            for found in opened.store.scan()
            for row, embedding in zip(found.rows, found.embeddings, strict=True)
        }
        return opened.about.model, embeddings


def check(index: Index, model: str, paths: set[str]) -> None:
    name, embeddings = of(index)
    assert name == model and embeddings.keys() == paths
    for path, embedding in embeddings.items():
        if Path(path).exists():
            assert np.abs(Encoder(model).images([path])[0] - embedding).max() < 2e-3


def test_the_new_index_has_all_of_the_old_one(index: Index, models: tuple[str, str], folder: Path) -> None:
    add_items(index.store, index.encoder, [Item(path=str(folder / "1.png"), image="", metadata={})])  # known: not read
    extra = write(folder.parent / "extra.png", 9)
    add_items(index.store, index.encoder, [Item(path=str(extra), image=str(extra), metadata={"year": 2001})])
    done = re_embed(index.store, Encoder(models[1]))
    assert done.has_taken_over and done.report.embedded == 6
    check(index, models[1], {str(extra), *(str(path) for path in folder.iterdir())})
    with Index.open(index.address) as opened:
        assert {row.metadata.get("year") for found in opened.store.scan() for row in found.rows} == {None, 2001}
        assert update_folders(opened.store, opened.encoder).unchanged == 5  # the folders are remembered too


def test_pictures_that_cannot_be_read_keep_the_old_index(index: Index, models: tuple[str, str], folder: Path) -> None:
    paths = {str(path) for path in folder.iterdir()}
    (folder / "2.png").rename(folder.parent / "2.png")
    done = re_embed(index.store, Encoder(models[1]))
    assert not done.has_taken_over and [failed.path for failed in done.report.failed] == [str(folder / "2.png")]
    check(index, models[0], paths)
    done = re_embed(index.store, Encoder(models[1]), remove_missing=True)
    assert done.has_taken_over and (done.report.unchanged, done.report.embedded) == (4, 0)
    check(index, models[1], paths - {str(folder / "2.png")})


def test_what_was_begun_for_one_model_is_not_finished_with_another(
    index: Index, models: tuple[str, str], folder: Path, tiny_vit: CLIP
) -> None:
    (folder / "2.png").rename(folder.parent / "2.png")
    assert not re_embed(index.store, Encoder(models[1])).has_taken_over
    with torch.no_grad():
        next(tiny_vit.visual.parameters()).mul_(-1)  # type: ignore[operator, unused-ignore]
    third = str(folder.parent / "third.safetensors")
    clip.save(tiny_vit, third)
    (folder.parent / "2.png").rename(folder / "2.png")
    done = re_embed(index.store, Encoder(third))
    assert done.has_taken_over and done.report.embedded == 5
    check(index, third, {str(path) for path in folder.iterdir()})


def test_what_others_change_meanwhile_is_followed(index: Index, models: tuple[str, str], folder: Path) -> None:
    added = folder.parent / "added.png"

    def others(count: int) -> None:
        if not added.exists():
            write(added, 8)
            with Index.open(index.address) as other:
                add_items(other.store, other.encoder, [Item(path=str(added), image=str(added))])
                other.remove([str(folder / "0.png")])

    assert re_embed(index.store, Encoder(models[1]), on_progress=others).has_taken_over
    check(index, models[1], {str(added), *(str(folder / f"{number}.png") for number in range(1, 5))})


def test_pictures_inside_of_shards(index: Index, models: tuple[str, str], folder: Path) -> None:
    shard = folder.parent / "shard.tar"

    def pack(*numbers: int) -> None:
        with tarfile.open(shard, "w") as file:
            for number in numbers:
                data = write(folder.parent / "one.png", number).read_bytes()
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
        os.utime(shard, ns=(0, numbers[-1]))

    pack(20, 21, 22)
    source = open_source(str(shard))
    assert source is not None and not hasattr(source, "batches")
    add_items(index.store, index.encoder, source.items(pytest.fail, lambda under: Seen(index.store, under)))  # type: ignore[arg-type]
    assert index.store.count() == 8
    pack(20, 21)
    done = re_embed(index.store, Encoder(models[1]))
    assert not done.has_taken_over
    assert [tuple(failed) for failed in done.report.failed] == [(f"{shard}/22.png", f"is not in {shard} now")]
    shard.rename(folder.parent / "away.tar")
    assert len(re_embed(index.store, Encoder(models[0])).report.failed) == 3
    (folder.parent / "away.tar").rename(shard)
    pack(20, 21, 22)
    done = re_embed(index.store, Encoder(models[1]))
    assert done.has_taken_over and not done.report.failed
    check(index, models[1], {*(str(path) for path in folder.iterdir()), *(f"{shard}/{n}.png" for n in (20, 21, 22))})


def test_an_ended_run_leaves_the_old_index(index: Index, models: tuple[str, str], folder: Path) -> None:
    def fail(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        re_embed(index.store, Encoder(models[1]), on_progress=fail)
    check(index, models[0], {str(path) for path in folder.iterdir()})
    about = read_about(index.store)
    assert about is not None and about.model == models[0]
    assert re_embed(index.store, Encoder(models[1])).has_taken_over
