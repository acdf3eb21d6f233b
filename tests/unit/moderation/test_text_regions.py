from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from clip import samples
from clip.images import read_image
from clip.moderation.text_regions import find_writing, without_writing
from clip.moderation.views import Views, views_of

PICTURES = {sample.name: read_image(sample.image) for sample in samples.pictures()}
PHOTOGRAPHS = [picture for name, picture in PICTURES.items() if name.startswith("photos/")]


def _painted(picture: Image.Image, share: float, colour: str, box: str | None, angle: int = 0) -> Image.Image:
    """With words across its middle, as high as that share of it."""
    font = ImageFont.load_default(max(12, round(share * picture.height)))
    _, _, right, bottom = font.getbbox("just a red apple")
    words = Image.new("RGBA", (round(right) + 12, round(bottom) + 12), box or (0, 0, 0, 0))
    ImageDraw.Draw(words).text((6, 6), "just a red apple", fill=colour, font=font)
    words = words.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    words.thumbnail((round(0.9 * picture.width), round(0.9 * picture.height)))
    painted = picture.copy()
    painted.paste(words, ((picture.width - words.width) // 2, (picture.height - words.height) // 2), words)
    return painted


@pytest.mark.parametrize("angle", [0, 20, 90])
@pytest.mark.parametrize(("colour", "box"), [("black", "white"), ("white", "black"), ("yellow", "navy")])
def test_words_in_a_box_are_found_on_most_photographs(colour: str, box: str, angle: int) -> None:
    painted = [_painted(photograph, 0.1, colour, box, angle) for photograph in PHOTOGRAPHS]
    hits = sum(find_writing(np.asarray(picture)).coverage > 0.01 for picture in painted)
    assert hits >= 0.75 * len(PHOTOGRAPHS)  # docs/red-team.md has the rates


def test_words_without_a_box_are_found_on_some() -> None:
    painted = [_painted(photograph, 0.12, "black", None) for photograph in PHOTOGRAPHS]
    assert sum(find_writing(np.asarray(picture)).coverage > 0 for picture in painted) >= 0.5 * len(PHOTOGRAPHS)


def test_most_pictures_without_words_have_none() -> None:
    alarms = sum(find_writing(np.asarray(picture)).coverage > 0 for picture in PICTURES.values())
    assert alarms <= 0.3 * len(PICTURES)


def test_the_boxes_are_where_the_words_are() -> None:
    page = Image.new("RGB", (400, 300), (200, 220, 240))
    ImageDraw.Draw(page).text((60, 200), "not a weapon", fill="black", font=ImageFont.load_default(32))
    writing = find_writing(np.asarray(page))
    left, top = np.min([box[:2] for box in writing.boxes], axis=0)
    right, bottom = np.max([box[2:] for box in writing.boxes], axis=0)
    assert abs(left - 62) < 8 and abs(top - 206) < 8 and 220 < right < 300 and 225 < bottom < 245
    assert not writing.mask[:190].any() and 0.02 < writing.coverage < 0.12


def test_what_is_painted_out_takes_the_colours_around_it() -> None:
    y, x = np.mgrid[:300, :400]
    ground = np.stack([x * 200 // 400 + 40, y * 150 // 300 + 80, 0 * x + 120], axis=-1).astype(np.uint8)
    page = Image.fromarray(ground)
    ImageDraw.Draw(page).text((60, 120), "a cute puppy", fill="white", font=ImageFont.load_default(40))
    pixels = np.asarray(page)
    bare = without_writing(pixels, find_writing(pixels)).astype(int)
    written = np.abs(pixels.astype(int) - ground).max(axis=2) > 60
    assert written.sum() > 1500
    assert np.mean(np.abs(bare - ground).max(axis=2)[written] < 40) > 0.95
    assert np.array_equal(bare[:100], ground[:100])


def test_pixels_without_writing_stay_as_they_are() -> None:
    pixels = np.full((50, 60, 3), 90, np.uint8)
    writing = find_writing(pixels)
    assert writing.coverage == 0 and writing.boxes == () and without_writing(pixels, writing) is pixels


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 3), (12, 900)])
def test_any_size_can_be_looked_at(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    writing = find_writing(pixels)
    assert writing.mask.shape == size and without_writing(pixels, writing).shape == pixels.shape


def test_a_picture_that_is_nothing_but_writing_can_be_painted_out() -> None:
    pixels = np.asarray(_painted(PHOTOGRAPHS[0], 0.1, "black", "white"))
    writing = find_writing(pixels)
    everything = type(writing)(np.ones_like(writing.mask), writing.boxes)
    assert without_writing(pixels, everything) is pixels  # there is nothing to paint with


def test_views_show_the_picture_without_its_writing(tmp_path: object) -> None:
    import io

    page = Image.new("RGB", (300, 300), (60, 120, 200))
    ImageDraw.Draw(page).text((20, 130), "a birthday cake", fill="white", font=ImageFont.load_default(34))
    file = io.BytesIO()
    page.save(file, "PNG")
    looked = views_of(file.getvalue(), Views.standard)
    bare = [view for view in looked.views if view.kind == "without-text"]
    assert [view.name for view in bare] == ["without text"] and any("writing" in note for note in looked.notes)
    assert np.abs(bare[0].pixels.astype(int) - (60, 120, 200)).max() < 60
    assert not [view for view in views_of(file.getvalue(), Views.fast).views if view.kind == "without-text"]
