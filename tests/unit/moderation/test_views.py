"""Whatever a file hides must be in one of its views, and whatever it is made of must stay within the bounds."""

from __future__ import annotations

import io
import random
import struct
import threading
import time
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageSequence

from clip.errors import ConfigError, ImageError
from clip.moderation.frames import Frame, Picture, as_stored, decode, find_frames
from clip.moderation.looks import difference, signature
from clip.moderation.margins import without_margins
from clip.moderation.sampling import MostDifferent, evenly
from clip.moderation.views import PRESETS, Looked, Views, views_of

Pixels = NDArray[np.uint8]


def _scene(width: int = 120, height: int = 120, shift: int = 0) -> Image.Image:
    """A smooth picture in blue and green."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([40 + 0 * x, 120 + 60 * np.sin((x + shift) / 15), 150 + 60 * np.cos(y / 11)], axis=-1).astype(np.uint8)
    )


def _secret(side: int = 120) -> Image.Image:
    """A red and black figure on white that resembles no scene."""
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((side // 24, side // 24, side // 2, side * 23 // 24), fill=(220, 0, 0))
    draw.ellipse((side // 2, side // 3, side * 23 // 24, side * 2 // 3), fill="black")
    return image


SECRET = _secret()


def _file(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _animation(frames: list[Image.Image], image_format: str, **options: Any) -> bytes:
    return _file(frames[0], image_format, save_all=True, append_images=frames[1:], **options)


def _away(pixels: Pixels, wanted: Image.Image) -> float:
    """Mean difference of two pictures of any size, as levels of grey."""
    size = (48, 48)
    one = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX), np.float32)
    return float(np.abs(one - np.asarray(wanted.convert("RGB").resize(size, Image.Resampling.BOX), np.float32)).mean())


def _shows(looked: Looked, wanted: Image.Image, within: float = 8) -> list[str]:
    """Names of the views that show it."""
    return [view.name for view in looked.views if _away(view.pixels, wanted) < within]


def _in_bounds(looked: Looked, how: Views) -> None:
    assert 1 <= len(looked.views) <= how.max_views
    assert len({view.frame for view in looked.views}) <= how.frames
    for view in looked.views:
        assert view.pixels.dtype == np.uint8 and view.pixels.ndim == 3 and view.pixels.shape[2] == 3
        assert 0 < view.pixels.shape[0] * view.pixels.shape[1] <= (1 << 21) * 1.3


# --- one picture ------------------------------------------------------------------------------------------------------


def test_presets_look_closer_and_closer() -> None:
    counts = [len(views_of(_file(_scene(200, 120)), how).views) for how in PRESETS.values()]
    assert counts == sorted(counts) and counts[0] < counts[1] < counts[2]
    for how in PRESETS.values():
        assert Views.named(how.name) is how
        assert views_of(_file(_scene()), how).views[0].name == "whole"


def test_the_hash_is_that_of_the_bytes(tmp_path: Any) -> None:
    import hashlib

    data = _file(SECRET)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    for source in (data, path, str(path), io.BytesIO(data)):
        looked = views_of(source, Views.fast)
        assert looked.sha256 == expected and looked.frames == 1 and looked.notes == ()
        assert np.array_equal(looked.views[0].pixels, np.asarray(SECRET))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (3000, 2), (5, 5)])
def test_tiny_and_thin_pictures_have_views(size: tuple[int, int]) -> None:
    for how in PRESETS.values():
        _in_bounds(views_of(_file(_scene(*size)), how), how)


def test_borders_of_what_is_not_square_are_seen() -> None:
    wide = _scene(300, 120)
    wide.paste(SECRET, (0, 0))
    assert any(name.startswith("part") for name in _shows(views_of(_file(wide), Views.fast), SECRET))


def test_a_small_thing_in_a_corner_of_a_page_is_cut_out() -> None:
    page = Image.new("RGB", (600, 500), (250, 240, 230))
    page.paste(SECRET.resize((70, 70)), (500, 20))
    assert _shows(views_of(_file(page), Views.fast), SECRET, within=25) == ["trimmed"]


def test_a_page_in_a_frame_is_cut_out_without_it() -> None:
    framed = Image.new("RGB", (400, 400), (20, 20, 20))
    framed.paste(SECRET, (140, 140))
    found = without_margins(np.asarray(framed))
    assert found is not None and found[0, 0].min() > 200  # the page, not the frame
    assert without_margins(np.asarray(_scene())) is None
    assert without_margins(np.full((30, 30, 3), 7, np.uint8)) is None


def test_what_was_turned_is_turned_back() -> None:
    for angle in (90, 180, 270):
        assert _shows(views_of(_file(SECRET.rotate(angle)), Views.standard), SECRET)
    assert not _shows(views_of(_file(SECRET.rotate(90)), Views.fast), SECRET)


def test_a_tile_shows_a_quarter_of_the_picture() -> None:
    scene = _scene(400, 400)
    scene.paste(SECRET.resize((240, 240)), (0, 0))  # tiles overlap: each has 0.6 of the side
    assert _shows(views_of(_file(scene), Views.standard), SECRET) == ["tile 1,1 of 2x2"]


@pytest.mark.parametrize("levels", [3, 20])
def test_a_faint_picture_is_looked_at_with_its_contrast_stretched(levels: int) -> None:
    faint = Image.fromarray((200 + np.asarray(SECRET.convert("L"), np.float32) * levels / 255).astype(np.uint8))
    looked = views_of(_file(faint), Views.fast)
    assert "whole contrast stretched" in _shows(looked, SECRET.convert("L"), within=30)
    assert any("contrast" in note for note in looked.notes)
    assert len(views_of(_file(SECRET), Views.fast).views) == 1


def test_a_blank_picture_has_one_view() -> None:
    looked = views_of(_file(Image.new("RGB", (50, 50), "red")), Views.fast)
    assert [view.name for view in looked.views] == ["whole"]


# --- transparency and palettes ----------------------------------------------------------------------------------------


def test_white_on_transparent_is_seen_on_black() -> None:
    white = Image.new("RGBA", SECRET.size, "white")
    white.putalpha(SECRET.convert("L").point(lambda level: 255 - level))
    on_black = Image.new("RGB", SECRET.size)
    on_black.paste(white, mask=white)
    assert _shows(views_of(_file(white), Views.fast), on_black) == ["whole on black"]


def test_black_and_white_on_transparent_are_seen_on_grey() -> None:
    both = Image.new("RGBA", (120, 120), (0, 0, 0, 0))
    draw = ImageDraw.Draw(both)
    draw.rectangle((10, 10, 60, 110), fill="black")
    draw.rectangle((61, 10, 110, 110), fill="white")
    names = [view.name for view in views_of(_file(both), Views.fast).views if view.name.startswith("whole")]
    assert names == ["whole", "whole on black", "whole on grey"]


def test_an_ordinary_transparent_picture_has_one_ground() -> None:
    ordinary = Image.new("RGBA", (120, 120), (0, 0, 0, 0))
    ImageDraw.Draw(ordinary).ellipse((5, 5, 115, 115), fill=(200, 80, 30, 255))
    assert [view.name for view in views_of(_file(ordinary), Views.fast).views] == ["whole"]


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_colours_under_full_transparency_are_seen(image_format: str) -> None:
    hidden = SECRET.copy()
    hidden.putalpha(0)
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    looked = views_of(_file(hidden, image_format, **options), Views.fast)
    assert _shows(looked, SECRET) == ["whole without transparency"]
    assert [view.kind for view in looked.views] == ["whole", "hidden"]
    assert any("transparency" in note for note in looked.notes)


def test_colours_under_the_transparent_entries_of_a_palette_are_seen() -> None:
    palette = SECRET.quantize(8)
    looked = views_of(_file(palette, transparency=bytes(8)), Views.fast)
    assert "whole without transparency" in _shows(looked, SECRET, within=12)


def test_two_pictures_in_one_by_their_ground() -> None:
    on_black = np.asarray(SECRET.convert("L"), np.float32) / 2
    on_white = 128 + np.asarray(_scene().convert("L"), np.float32) / 2
    alpha = 255 - (on_white - on_black)
    grey = (on_black * 255 / np.maximum(alpha, 1)).clip(0, 255)
    both = Image.merge("LA", [Image.fromarray(layer.astype(np.uint8)) for layer in (grey, alpha)])
    looked = views_of(_file(both), Views.fast)
    assert _shows(looked, Image.fromarray(on_black.astype(np.uint8))) == ["whole on black"]


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_entries_of_a_palette_with_one_colour_are_told_apart(image_format: str) -> None:
    indices = SECRET.convert("L").point([i // 128 for i in range(256)])
    image = Image.frombytes("P", indices.size, indices.tobytes())
    image.putpalette([240] * 6)
    looked = views_of(_file(image, image_format, optimize=False), Views.fast)
    assert _away(looked.views[0].pixels, Image.new("RGB", (9, 9), (240, 240, 240))) < 1
    ramp = Image.fromarray(255 - 255 * np.asarray(indices))
    assert _shows(looked, ramp) == ["whole palette told apart"]


# --- orientation, and pictures inside a picture -----------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_both_ways_to_read_an_orientation_are_seen(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if image_format == "WEBP" else {}
    looked = views_of(_file(SECRET, image_format, exif=exif, **options), Views.fast)
    assert _shows(looked, SECRET) == ["whole as stored"]
    assert any(f"EXIF orientation ({orientation})" in note for note in looked.notes)


def test_as_stored_is_the_inverse_of_upright() -> None:
    exif = Image.Exif()
    pixels = np.asarray(_scene(7, 5))
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        picture = decode(_file(Image.fromarray(pixels), exif=exif))
        assert np.array_equal(as_stored(picture.rgb, orientation), pixels)


def _with_thumbnail(image: Image.Image, thumbnail: Image.Image) -> bytes:
    data, small = _file(image, "JPEG", quality=95), _file(thumbnail, "JPEG", quality=95)
    exif = struct.pack("<4xIHIHHHIIHHIII", 8, 0, 14, 2, 513, 4, 1, 44, 514, 4, 1, len(small), 0)
    payload = b"Exif\0\0II*\0" + exif[4:] + small
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def test_a_thumbnail_of_something_else_is_seen() -> None:
    looked = views_of(_with_thumbnail(_scene(300, 300), SECRET.resize((100, 100))), Views.fast)
    assert _shows(looked, SECRET) == ["hidden picture 1"]
    assert any("thumbnail" in note for note in looked.notes)
    honest = views_of(_with_thumbnail(SECRET.resize((300, 300)), SECRET.resize((100, 100))), Views.fast)
    assert [view.name for view in honest.views] == ["whole"] and honest.notes == ()


@pytest.mark.parametrize("outer", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("inner", ["JPEG", "PNG", "GIF", "WEBP"])
def test_an_appended_picture_is_seen(outer: str, inner: str) -> None:
    looked = views_of(_file(_scene(), outer) + _file(SECRET, inner), Views.fast)
    assert any("hidden picture" in name or "frame 1" in name for name in _shows(looked, SECRET, within=12))


# --- animations -------------------------------------------------------------------------------------------------------


def _frames(count: int, strange: int) -> list[Image.Image]:
    """A dot that wanders over a scene, and the secret in one of them."""
    frames = []
    for i in range(count):
        frame = _scene()
        ImageDraw.Draw(frame).ellipse((i % 110, 20, i % 110 + 5, 25), fill="yellow")
        frames.append(frame)
    frames[strange] = SECRET.copy()
    return frames


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("strange", [0, 7, 19])
def test_one_strange_frame_is_seen_wherever_it_is(image_format: str, strange: int) -> None:
    data = _animation(_frames(20, strange), image_format)
    for how in (Views.fast, Views.standard):
        looked = views_of(data, how)
        assert looked.frames == 20
        assert any(view.frame == strange and _away(view.pixels, SECRET) < 8 for view in looked.views)
        _in_bounds(looked, how)


def test_one_frame_of_five_hundred() -> None:
    frames = [frame.resize((40, 40)).quantize(8, dither=Image.Dither.NONE) for frame in _frames(110, 109)]
    frames = [frames[i % 109] for i in range(343)] + [frames[109]] + [frames[i % 109] for i in range(344, 500)]
    looked = views_of(_animation(frames, "GIF"), Views.fast)
    assert looked.frames == 500 and {0, 343, 499} <= {view.frame for view in looked.views}
    assert any("4 of its 500 frames" in note for note in looked.notes)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_frames_are_drawn_as_pillow_draws_them(image_format: str, disposal: int) -> None:
    frames = [frame.convert("RGBA") for frame in _frames(6, 3)]
    for i, frame in enumerate(frames):
        ImageDraw.Draw(frame).rectangle((60, 60, 70 + i, 80), fill=(0, 0, 0, 0))
    options: dict[str, Any] = {"lossless": True} if image_format == "WEBP" else {"disposal": disposal}
    data = _animation(frames, image_format, **options)
    shown = list(find_frames(data).shown(range(6), max_pixels=1 << 20))
    with Image.open(io.BytesIO(data)) as image:
        expected = [np.array(frame.convert("RGBA")) for frame in ImageSequence.Iterator(image)]
    for i, pillow in enumerate(expected):
        last = list(find_frames(data).shown(range(i + 1), max_pixels=1 << 20))[-1]  # each is drawn over the one before
        assert isinstance(last, Frame)
        alpha = np.full(pillow.shape[:2], 255) if last.picture.alpha is None else last.picture.alpha
        assert np.array_equal(alpha, pillow[..., 3]), f"frame {i}"
        assert np.array_equal(last.picture.rgb[alpha > 0], pillow[alpha > 0][:, :3]), f"frame {i}"
    assert len(shown) == len(expected) == 6


def test_the_default_picture_of_an_animation_and_its_frames_are_seen() -> None:
    looked = views_of(_file(_scene(), save_all=True, append_images=[SECRET], default_image=True), Views.fast)
    assert _away(looked.views[0].pixels, _scene()) < 1 and _shows(looked, SECRET) == ["frame 1: whole"]
    assert any("none of its frames" in note for note in looked.notes)


GREY_RAMP = [level for i in range(128) for level in (2 * i,) * 3]


def _with_palette(palette: list[int]) -> Image.Image:
    """The secret by its grey levels, halved, as entries of a palette."""
    grey = SECRET.convert("L").point([i // 2 for i in range(256)])
    image = Image.frombytes("P", grey.size, grey.tobytes())
    image.putpalette(palette)
    return image


def _gif_frame(image: Image.Image) -> bytes:
    """A frame with 128 colours of its own, and the end of a file."""
    data = _file(image, "GIF", optimize=False, interlace=0)
    start = data.index(b"\x2c", 13 + 384)
    return data[start : start + 9] + b"\x86" + data[13 : 13 + 384] + data[start + 10 :]


def test_a_frame_that_changes_only_the_palette_is_seen() -> None:
    one_colour = _file(_with_palette([200] * 384), "GIF", optimize=False, interlace=0)
    looked = views_of(one_colour[:-1] + _gif_frame(_with_palette(GREY_RAMP)), Views.fast)
    assert "frame 1: whole" in _shows(looked, SECRET.convert("L"))


def test_a_frame_beyond_the_screen_of_a_gif_is_seen() -> None:
    data = _file(_scene(40, 40), "GIF")[:-1] + _gif_frame(_with_palette(GREY_RAMP))
    looked = views_of(data, Views.fast)
    assert looked.frames == 2 and _shows(looked, SECRET.convert("L")) == ["frame 1: whole"]


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_a_file_that_ends_early_keeps_the_frames_it_has(image_format: str) -> None:
    data = _animation(_frames(12, 2), image_format)
    looked = views_of(data[: int(len(data) * 0.6)])
    assert 2 < looked.frames <= 12 and _shows(looked, SECRET)
    assert any("damaged" in note or "cut off" in note for note in looked.notes)


def test_a_damaged_frame_costs_that_frame_only() -> None:
    frames = find_frames(_animation(_frames(8, 6), "PNG"))
    data = bytearray(_animation(_frames(8, 6), "PNG"))
    broken = bytes(frames.patches[3].pieces()[-2])[8:40]  # the contents of the fourth frame
    at = bytes(data).index(broken)
    data[at : at + 32] = bytes(32)
    looked = views_of(bytes(data), Views.standard)
    assert _shows(looked, SECRET) and any("1 of 8 frames are damaged" in note for note in looked.notes)


# --- choosing frames --------------------------------------------------------------------------------------------------


def test_evenly_keeps_both_ends() -> None:
    assert evenly(5, 9) == [0, 1, 2, 3, 4] and evenly(1, 1) == [0] and evenly(100, 1) == [0]
    for count in (7, 100, 12345):
        chosen = evenly(count, 6)
        assert chosen[0] == 0 and chosen[-1] == count - 1 and len(chosen) == 6


def test_the_most_different_are_kept() -> None:
    rng = np.random.default_rng(0)
    strange = [signature(Picture(rng.integers(0, 255, (30, 30, 3), np.uint8))) for _ in range(2)]
    plain = [signature(Picture(np.full((30, 30, 3), 90 + i % 9, np.uint8))) for i in range(60)]
    plain[13], plain[44] = strange
    choice = MostDifferent[int](4)
    for i, sign in enumerate(plain):
        place = choice.place_for(sign, is_last=i == 59)
        if place is not None:
            choice.put(place, sign, i)
    assert {0, 13, 44} <= set(choice.kept) and len(choice.kept) == 4
    assert float(difference(strange[0], strange[1])) > 24


# --- hostile files ----------------------------------------------------------------------------------------------------


def _gif_bomb(frames: int, width: int = 60, height: int = 60) -> bytes:
    tiny = _file(Image.new("P", (1, 1)), "GIF", interlace=0)
    start = tiny.index(b"\x2c", 13)
    frame = tiny[start:-1]
    return b"GIF89a" + struct.pack("<HH", width, height) + tiny[10 : tiny.index(b"\x2c", 13)] + frame * frames + b"\x3b"


def test_a_hundred_thousand_frames_are_sampled() -> None:
    began = time.process_time()
    looked = views_of(_gif_bomb(100_000), Views.fast)
    assert looked.frames == 100_000 and any("were not even decoded" in note for note in looked.notes)
    _in_bounds(looked, Views.fast)
    assert time.process_time() - began < 30  # far above what it takes; without the bound it would be minutes


def _png_chunk(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))


def test_sizes_that_a_file_only_states_are_refused() -> None:
    ihdr = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)
    with pytest.raises(ImageError, match="60000×60000"):
        views_of(b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", ihdr) + _png_chunk(b"IDAT", b"") + _png_chunk(b"IEND", b""))
    with pytest.raises(ImageError, match="65535×65535"):
        views_of(_gif_bomb(3, 65535, 65535))


def test_a_frame_larger_than_the_limit_is_passed_over() -> None:
    data = _animation([_scene(30, 30), SECRET], "PNG")
    at = data.index(b"fcTL", data.index(b"fcTL") + 4) + 8
    large = data[:at] + struct.pack(">2I", 60_000, 60_000) + data[at + 8 :]
    looked = views_of(large, Views.fast)
    assert {view.frame for view in looked.views} == {0}
    assert any("too large" in note for note in looked.notes)


def test_pages_that_lead_in_a_circle_end() -> None:
    data = bytearray(_animation([_scene(), _scene(shift=5)], "TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, first)[0]
    data[first + 2 + 12 * entries : first + 6 + 12 * entries] = struct.pack("<I", first)
    assert views_of(bytes(data), Views.fast).frames == 1


def test_many_beginnings_of_pictures_are_not_all_tried() -> None:
    data = _file(_scene(), "JPEG") + b"\xff\xd8\xff\xe0" * 200_000
    began = time.process_time()
    _in_bounds(views_of(data, Views.fast), Views.fast)
    assert time.process_time() - began < 30


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_mutated_animations_give_views_or_an_error(image_format: str) -> None:
    original = _animation([frame.resize((40, 40)) for frame in _frames(4, 2)], image_format)
    chance = random.Random(image_format)
    outcomes = {"views": 0, "errors": 0}
    for _ in range(100):
        data = bytearray(original)
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[at] = chance.randrange(256)
            elif chance.random() < 0.5:
                data[at : at + chance.randint(1, 30)] = b""
            else:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
        try:
            _in_bounds(views_of(bytes(data), Views.fast), Views.fast)
            outcomes["views"] += 1
        except ImageError:
            outcomes["errors"] += 1
    assert outcomes["views"] and outcomes["errors"], outcomes


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"no picture at all", b"\xff\xd8\xff"])
def test_what_is_no_picture_is_refused_by_name(data: bytes, tmp_path: Any) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.png"):
        views_of(path)
    with pytest.raises(ImageError, match="no such file"):
        views_of(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is a directory"):
        views_of(tmp_path)


def test_threads_see_the_same() -> None:
    data = _animation(_frames(10, 4), "GIF")
    expected = views_of(data, Views.standard)
    found: list[Looked] = []

    def look() -> None:
        found.append(views_of(data, Views.standard))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for looked in found:
        assert [v.name for v in looked.views] == [v.name for v in expected.views]
        pairs = zip(looked.views, expected.views, strict=True)
        assert all(np.array_equal(one.pixels, other.pixels) for one, other in pairs)


@pytest.mark.parametrize(
    "fields", [{"frames": 0}, {"max_views": 0}, {"grids": (1,)}, {"parts": 0}, {"max_decoded": 0}], ids=str
)
def test_views_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Views(name="odd", **fields)
    with pytest.raises(ConfigError, match="thorough"):
        Views.named("thoroug")
