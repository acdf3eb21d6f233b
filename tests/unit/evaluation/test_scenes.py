"""Scenes: what a caption says is what is drawn; the same seed gives the same pixels; tests and training data differ."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clip.errors import ConfigError, DataError, ImageError
from clip.evaluation import things
from clip.evaluation.scenes import (
    KINDS,
    NUMBERS,
    Compositions,
    Item,
    Kind,
    Placed,
    draw,
    kinds_of,
    make_item,
    shapes,
)
from clip.evaluation.things import COLOURS, NEAR_ALIKE, SHAPES, plural, read_things

EMOJI = Path(__file__).parents[3] / "examples" / "emoji"
SHAPES_AND_COLOURS = shapes()


def items(kind: Kind, count: int = 60, seed: int = 0, part: str = "test") -> list[Item]:
    return [make_item(kind, i, seed=seed, vocabulary=SHAPES_AND_COLOURS, part=part) for i in range(count)]


def coverage(picture: Image.Image, placed: Placed) -> np.ndarray:
    """(H, W) bool: pixels that have the colour of the thing."""
    pixels = np.asarray(picture).astype(int)
    return np.abs(pixels - np.array(placed.rgb)).max(axis=2) <= 2


def regions(mask: np.ndarray) -> int:
    """How many connected parts of at least ten pixels."""
    canvas = Image.fromarray(mask.astype(np.uint8) * 255).copy()
    count = 0
    while (where := np.argwhere(np.asarray(canvas) == 255)).size:
        before = len(where)
        ImageDraw.floodfill(canvas, (int(where[0, 1]), int(where[0, 0])), 100)
        count += before - np.count_nonzero(np.asarray(canvas) == 255) >= 10
    return count


def test_a_counted_number_of_things_is_drawn() -> None:
    for item in items("counting", 30):
        for scene, caption in zip(item.scenes, item.captions, strict=True):
            number = NUMBERS.index(caption.split()[0]) + 1
            picture = draw(scene)
            assert regions(coverage(picture, scene.placed[0])) == len(scene.placed) == number, caption


@pytest.mark.parametrize("kind", ["left-right", "above-below"])
def test_things_lie_where_the_caption_says(kind: Kind) -> None:
    for item in items(kind):
        for scene, caption in zip(item.scenes, item.captions, strict=True):
            first, second = sorted(scene.placed, key=lambda placed: caption.index(f"a {placed.thing.name}"))
            picture = draw(scene)
            (y, x), (v, u) = (np.argwhere(coverage(picture, placed)).mean(axis=0) for placed in (first, second))
            is_so = {" left ": x < u - 20, " right ": x > u + 20, " above ": y < v - 20, " below ": y > v + 20}
            assert next(truth for word, truth in is_so.items() if word in caption), caption


def test_each_thing_has_the_colour_of_the_caption() -> None:
    for item in items("colour"):
        for scene, caption in zip(item.scenes, item.captions, strict=True):
            for placed in scene.placed:
                assert f"{placed.colour} {placed.thing.name}" in caption
                nearest = min(COLOURS, key=lambda name: math.dist(COLOURS[name], placed.rgb))
                assert nearest == placed.colour
                assert coverage(draw(scene), placed).sum() > 300
        assert sorted(item.captions[0].split()[1:]) != item.captions[0].split()[1:]  # a sentence, not a list of words
        bags = [sorted(caption.replace("an ", "a ").split()) for caption in item.captions]
        assert bags[0] == bags[1]


def test_negation_names_what_is_missing() -> None:
    seen = set()
    for item in items("negation"):
        seen.add(item.variant)
        for scene, caption in zip(item.scenes, item.captions, strict=True):
            drawn = {placed.thing.name for placed in scene.placed}
            words = caption.replace(" but no ", " no ").replace(" without a ", " no ").replace(" and no ", " no ")
            affirmed, _, denied = words.partition(" no ")
            named = {name.removeprefix("a ") for name in affirmed.split(" and ")}
            assert drawn == named, caption
            assert denied not in drawn
    assert seen == {"exchanged", "denied"}


def test_near_alikes_are_of_one_family() -> None:
    families = {thing.name: thing.family for thing in NEAR_ALIKE}
    seen = set()
    for item in items("fine", 200):
        named = [caption.split(" ", 2)[2] for caption in (item.captions[0], *item.wrong)]
        assert len(set(named)) == 4
        assert {families[name] for name in named} == {item.variant}
        assert {families[c.split(" ", 2)[2]] for c in item.control}.isdisjoint({item.variant})
        seen.add(item.variant)
    assert seen == set(families.values())


def test_near_alikes_differ_in_pixels() -> None:
    for family in SHAPES_AND_COLOURS.families():
        masks = [np.asarray(thing._mask(96, 0.0)).astype(int) for thing in family]
        for i, mask in enumerate(masks):
            for other in masks[:i]:
                assert (abs(mask - other) > 128).sum() > 200


@pytest.mark.parametrize("thing", [*SHAPES, *NEAR_ALIKE], ids=lambda thing: f"{thing.family} {thing.name}")
def test_a_turned_shape_stays_in_its_square(thing: things.Thing) -> None:
    assert max(math.hypot(*point) for layer in thing.layers for point in layer.points) <= 1 + 1e-12
    soft = np.asarray(thing._mask(64, 7.0))
    assert 0 < ((soft > 0) & (soft < 255)).mean() < 0.5  # antialiased


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_scenes_and_all_captions_differ(kind: Kind) -> None:
    for item in items(kind, 100):
        assert draw(item.scenes[0], 64).tobytes() != draw(item.scenes[1], 64).tobytes()
        assert item.captions[1] == item.wrong[0]
        assert len({item.captions[0], *item.wrong}) == 1 + len(item.wrong)
        assert item.captions[0] not in item.control
        assert len(item.control) == len(item.wrong)
        assert len(set(item.control)) == len(item.control)


def test_seed_zero_is_the_same_test_for_ever() -> None:
    first = {kind: items(kind, 1)[0].captions[0] for kind in KINDS}
    assert first == {
        "counting": "six blue stars",
        "colour": "a purple square and a blue heart",
        "left-right": "a heart to the left of a ring",
        "above-below": "a crescent above a triangle",
        "negation": "a triangle and a cross",
        "fine": "a black rectangle",
    }


def digest() -> str:
    whole = hashlib.sha256()
    for kind in KINDS:
        for scene in make_item(kind, 3, seed=5, vocabulary=shapes()).scenes:
            whole.update(draw(scene).tobytes())
    return whole.hexdigest()


def test_another_process_draws_the_same_pixels() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_scenes; print(test_scenes.digest())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert output.strip() == digest() == digest()


def test_other_seeds_give_other_scenes() -> None:
    assert items("colour", 5, seed=1)[4].captions != items("colour", 5, seed=2)[4].captions


def test_no_caption_of_a_test_is_in_training() -> None:
    for vocabulary in (SHAPES_AND_COLOURS, read_things(EMOJI)):
        for kind in kinds_of(vocabulary, "train"):
            said = {
                part: {
                    caption
                    for seed in (0, 1)
                    for i in range(250)
                    for caption in make_item(kind, i, seed=seed, vocabulary=vocabulary, part=part).captions
                }
                for part in ("test", "train")
            }
            assert not said["test"] & said["train"], kind
            assert min(len(captions) for captions in said.values()) >= 12, kind


def test_every_shape_is_in_both_parts() -> None:
    for kind in ("counting", "colour", "left-right", "above-below", "negation"):
        for part in ("test", "train"):
            names = {thing for item in items(kind, 300, part=part) for thing in item.words}
            assert names >= {thing.name for thing in SHAPES}, (kind, part)


def test_compositions_are_a_source() -> None:
    source = Compositions(20, seed=3, size=32)
    assert len(source) == 20
    copied = pickle.loads(pickle.dumps(source))  # workers get a copy
    for i, sample in ((i, source[i]) for i in range(20)):
        assert sample == copied[i]
        assert isinstance(sample.image, bytes)
        assert Image.open(io.BytesIO(sample.image)).size == (32, 32)
        assert (
            sample.captions[0]
            in make_item(KINDS[i // 2 % 6], i // 12, seed=3, vocabulary=SHAPES_AND_COLOURS, part="train").captions
        )
    assert source[0].captions != source[1].captions
    with pytest.raises(IndexError):
        source[20]
    with pytest.raises(ConfigError, match="count is 0"):
        Compositions(0)


def test_pictures_of_a_folder_are_things() -> None:
    vocabulary = read_things(EMOJI)
    assert kinds_of(vocabulary) == KINDS
    assert "fine" not in kinds_of(vocabulary, "train")
    assert {thing.name for thing in vocabulary.near_alike} >= {"fish", "fox", "avocado", "doughnut"}
    item = make_item("colour", 0, seed=0, vocabulary=vocabulary)
    assert " frame and " in item.captions[0]
    assert draw(item.scenes[0]).getpixel((0, 0)) == (255, 255, 255)
    frame = item.scenes[0].placed[0]
    assert coverage(draw(item.scenes[0]), frame).sum() > 500


def test_names_come_from_files_without_a_table(tmp_path: Path) -> None:
    for name in ("fire_engine", "red-panda", "bus", "fly"):
        Image.new("RGBA", (9, 20), (200, 0, 0, 255)).save(tmp_path / f"{name}.png")
    vocabulary = read_things(tmp_path)
    assert [thing.plural for thing in vocabulary.things] == ["buses", "fire engines", "flies", "red pandas"]
    assert vocabulary.things[0].picture is not None
    assert vocabulary.things[0].picture.size == (20, 20)
    assert kinds_of(vocabulary) == KINDS[:-1]
    with pytest.raises(ConfigError, match=r"'fine' is not among .* two families"):
        make_item("fine", 0, seed=0, vocabulary=vocabulary)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        read_things(tmp_path / "gone")
    with pytest.raises(ConfigError, match="has 0 things; at least 4"):
        read_things(tmp_path)
    (tmp_path / "labels.csv").write_text("name\nfox\n")
    with pytest.raises(DataError, match=r"labels.csv:2: has no file"):
        read_things(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"file\n\xff\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_things(tmp_path)
    (tmp_path / "labels.csv").write_text("file\na.png\n")
    with pytest.raises(ImageError, match=r"a\.png"):
        read_things(tmp_path)
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,fox\nb.png,fox\n")
    with pytest.raises(DataError, match="'fox' names more than one"):
        read_things(tmp_path)


def test_plurals() -> None:
    words = {
        "star with five points": "stars with five points",
        "sheaf of rice": "sheaves of rice",
        "hot springs": "hot springs",
        "crescent": "crescents",
        "cross": "crosses",
        "church": "churches",
        "cherry": "cherries",
        "key": "keys",
        "tropical fish": "tropical fish",
        "chart increasing with yen": "charts increasing with yen",
        "glass of milk": "glasses of milk",
    }
    assert {word: plural(word) for word in words} == words
