"""What a generated scene can hold, and what to call it: shapes drawn from polygons, and pictures from a folder.

A thing belongs to a family of near-alikes, between whose members only a close look decides.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from clip.errors import ConfigError, DataError
from clip.images import read_image
from clip.prompts import with_article

__all__ = ["COLOURS", "NEAR_ALIKE", "SHAPES", "Colour", "Thing", "Vocabulary", "plural", "read_things"]

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (214, 32, 32),
    "green": (36, 150, 52),
    "blue": (36, 84, 208),
    "yellow": (246, 208, 28),
    "orange": (244, 128, 16),
    "purple": (128, 48, 168),
    "pink": (246, 136, 186),
    "black": (16, 16, 16),
    "white": (252, 252, 252),
}

_OVERSAMPLING = 4
_FRAME = 0.09
"""Width of a frame around a picture, as a share of its side."""
_PICTURE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A polygon that is added to a shape, or cut out of it."""

    points: tuple[Point, ...]
    """In the circle of radius 1; y grows downwards, as in pictures."""
    is_hole: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Thing:
    """A shape, which has any colour, or a picture, which has its own and can have a coloured frame."""

    name: str
    plural: str
    family: str
    """Things of one family look nearly alike; each alone in its family is ``""``."""
    layers: tuple[Layer, ...] = ()
    picture: Image.Image | None = None
    sway: float = 0.0
    """How far it may be turned either way without becoming something else, in degrees."""

    def named(self, colour: str | None = None, *, article: bool = True) -> str:
        """ "a red circle", "a circle", "a fox in a red frame", "a fox" """
        if self.picture is None:
            name = f"{colour} {self.name}" if colour else self.name
        else:
            name = f"{self.name} in a {colour} frame" if colour else self.name
        return with_article(name) if article else name

    def counted(self, number: str, is_one: bool, colour: str | None = None) -> str:
        """ "three red circles", "three foxes" """
        name = self.name if is_one else self.plural
        return f"{number} {colour} {name}" if colour and self.picture is None else f"{number} {name}"

    def draw(self, canvas: Image.Image, corner: tuple[int, int], side: int, colour: Colour | None, turn: float) -> None:
        """Draws it into the square of the canvas. turn: degrees, for shapes. Changes the canvas."""
        if self.picture is None:
            assert colour is not None, "a shape has a colour"
            canvas.paste(colour, (*corner, corner[0] + side, corner[1] + side), self._mask(side, turn))
            return
        frame = max(1, round(side * _FRAME)) if colour else 0
        if colour:
            canvas.paste(colour, (*corner, corner[0] + side, corner[1] + side))
        inner = side - 2 * frame
        picture = self.picture.resize((inner, inner), Image.Resampling.LANCZOS)
        canvas.paste(picture, (corner[0] + frame, corner[1] + frame))

    def _mask(self, side: int, turn: float) -> Image.Image:
        """Coverage of the pixels by the shape, antialiased; mode L."""
        large = side * _OVERSAMPLING
        mask = Image.new("L", (large, large))
        pen = ImageDraw.Draw(mask)
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        for layer in self.layers:
            points = [
                ((x * cos - y * sin + 1) / 2 * (large - 1), (x * sin + y * cos + 1) / 2 * (large - 1))
                for x, y in layer.points
            ]
            pen.polygon(points, fill=0 if layer.is_hole else 255)
        return mask.reduce(_OVERSAMPLING)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """What a set of scenes is made of."""

    things: tuple[Thing, ...]
    """Easily told apart; at least four."""
    near_alike: tuple[Thing, ...]
    """For the fine-grained split: families of at least two. Empty if there are no two such families."""
    name: str
    """For reports: "shapes", or the folder."""

    def __post_init__(self) -> None:
        if len(self.things) < 4:
            raise ConfigError(f"{self.name} has {len(self.things)} things; at least 4 are needed to be confused")

    @property
    def is_pictures(self) -> bool:
        """Whether things have their own colours, and lie on white."""
        return any(thing.picture is not None for thing in self.things)

    def families(self) -> list[list[Thing]]:
        """The near-alikes, family by family."""
        by_name: dict[str, list[Thing]] = {}
        for thing in self.near_alike:
            by_name.setdefault(thing.family, []).append(thing)
        return list(by_name.values())


# Shapes ---------------------------------------------------------------------------------------------------------------


def _ellipse(width: float = 1.0, height: float = 1.0, x: float = 0.0, y: float = 0.0) -> tuple[Point, ...]:
    angles = [2 * math.pi * i / 96 for i in range(96)]
    return tuple((x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles)


def _polygon(corners: int, inner: float | None = None) -> tuple[Point, ...]:
    """Regular, one corner up; with ``inner``, the radius of the corners between, a star."""
    radii = [1.0] if inner is None else [1.0, inner]
    count = corners * len(radii)
    angles = [2 * math.pi * i / count for i in range(count)]
    return tuple(
        (radii[i % len(radii)] * math.sin(angle), -radii[i % len(radii)] * math.cos(angle))
        for i, angle in enumerate(angles)
    )


def _heart() -> tuple[Point, ...]:
    angles = [2 * math.pi * i / 96 for i in range(96)]
    x = [16 * math.sin(t) ** 3 / 17 for t in angles]
    y = [-(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 17 for t in angles]
    return tuple(zip(x, y, strict=True))


def _turned(points: Sequence[Point], quarters: int) -> tuple[Point, ...]:
    for _ in range(quarters):
        points = [(-y, x) for x, y in points]
    return tuple(points)


_SQUARE: tuple[Point, ...] = ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
_CROSS: tuple[Point, ...] = tuple(
    point
    for quarters in range(4)
    for point in _turned(((-0.3, -1.0), (0.3, -1.0), (0.3, -0.3)), quarters)
)  # fmt: skip
_ARROW: tuple[Point, ...] = (
    (0.0, -1.0), (0.75, -0.2), (0.27, -0.2), (0.27, 1.0), (-0.27, 1.0), (-0.27, -0.2), (-0.75, -0.2)
)  # fmt: skip


def _shape(name: str, *layers: Layer | tuple[Point, ...], family: str = "", sway: float = 12.0) -> Thing:
    whole = [layer if isinstance(layer, Layer) else Layer(layer) for layer in layers]
    reach = max(
        1.0, *(math.hypot(*point) for layer in whole for point in layer.points)
    )  # turned, it stays in its square
    whole = [
        dataclasses.replace(layer, points=tuple((x / reach, y / reach) for x, y in layer.points)) for layer in whole
    ]
    return Thing(name=name, plural=plural(name), family=family, layers=tuple(whole), sway=sway)


def _ring(outer: float, inner: float) -> tuple[Layer, Layer]:
    return Layer(_ellipse(outer, outer)), Layer(_ellipse(inner, inner), is_hole=True)


_VOWEL = re.compile(r"[aeiou]")
_IRREGULAR = {
    **{word: word for word in ("fish", "sheep", "deer", "scissors", "glasses", "trousers", "jeans", "shrimp", "squid")},
    **{"man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice", "goose": "geese"},
    **{"tooth": "teeth", "foot": "feet", "ox": "oxen", "knife": "knives", "wife": "wives", "life": "lives"},
    **{f"{stem}f": f"{stem}ves" for stem in ("lea", "shea", "loa", "wol", "cal", "hal", "shel", "thie", "el", "scar")},
}
_HEAD = re.compile(r" (?:of|with|in|on|at|made|pointing|increasing|decreasing) ")


def plural(name: str) -> str:
    """More than one of it: "stars with five points", "sheaves of rice". A rule of thumb, for English."""
    head, rest = name, ""
    if match := _HEAD.search(name):
        head, rest = name[: match.start()], name[match.start() :]
    first, _, word = head.rpartition(" ")
    if word.lower() in _IRREGULAR:
        word = _IRREGULAR[word.lower()]
    elif word.endswith("y") and not _VOWEL.match(word[-2:-1]):
        word = f"{word[:-1]}ies"
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        # "springs" and "swim briefs" are many already; "bus", "glass" and "box" are not.
        is_many = re.search(r"[^aiousx]s$", word) is not None
        word = word if is_many else f"{word}es"
    else:
        word = f"{word}s"
    return f"{first} {word}{rest}".strip()


SHAPES: tuple[Thing, ...] = (
    _shape("circle", _ellipse()),
    _shape("square", _SQUARE),
    _shape("triangle", _polygon(3)),
    _shape("star", _polygon(5, 0.42), sway=36),
    _shape("heart", _heart()),
    _shape("cross", _CROSS),
    _shape("ring", *_ring(1, 0.62)),
    _shape("crescent", _ellipse(), Layer(_ellipse(0.85, 0.85, 0.42), is_hole=True), sway=30),
)
"""Told apart at a glance, whatever the size and turn."""

_DOTS = tuple(
    Layer(_ellipse(0.17, 0.17, 0.8 * math.sin(a), 0.8 * math.cos(a))) for a in (i * math.pi / 5 for i in range(10))
)

NEAR_ALIKE: tuple[Thing, ...] = (
    *(
        _shape(name, _polygon(corners), family="polygon", sway=20)
        for name, corners in (("triangle", 3), ("pentagon", 5), ("hexagon", 6), ("octagon", 8))
    ),
    *(
        _shape(f"star with {name} points", _polygon(points, 0.45), family="star", sway=20)
        for name, points in (("four", 4), ("five", 5), ("six", 6), ("eight", 8))
    ),
    _shape("thin ring", *_ring(1, 0.88), family="ring"),
    _shape("thick ring", *_ring(1, 0.5), family="ring"),
    _shape("double ring", *_ring(1, 0.84), *_ring(0.62, 0.44), family="ring"),
    _shape("dotted ring", *_DOTS, family="ring"),
    _shape("rectangle", ((-1, -0.55), (1, -0.55), (1, 0.55), (-1, 0.55)), family="quadrilateral", sway=8),
    _shape("rhombus", ((0, -1), (0.65, 0), (0, 1), (-0.65, 0)), family="quadrilateral", sway=8),
    _shape("trapezoid", ((-0.5, -0.6), (0.5, -0.6), (1, 0.6), (-1, 0.6)), family="quadrilateral", sway=8),
    _shape("parallelogram", ((-0.5, -0.55), (1, -0.55), (0.5, 0.55), (-1, 0.55)), family="quadrilateral", sway=8),
    *(
        _shape(f"arrow pointing {name}", _turned(_ARROW, quarters), family="arrow", sway=10)
        for quarters, name in enumerate(("up", "right", "down", "left"))
    ),
)  # fmt: skip
"""Families of four between whose members one corner, one thickness or one direction decides."""


# Pictures -------------------------------------------------------------------------------------------------------------


def read_things(folder: str | os.PathLike[str]) -> Vocabulary:
    """The pictures of a folder as things: cut-outs on white or transparent ground, about square.

    Names are those of the files ("fire_engine.png" is a "fire engine"), or, where there is a ``labels.csv``, those of
    its columns ``file`` and ``label``, and ``plural`` if it has one. A column ``subcategory`` makes the families of the
    fine-grained split, by what stands before the first hyphen: ``animal-mammal`` and ``animal-marine`` are near-alikes.
    Raises DataError for a folder or table that cannot be used, ImageError for a bad picture.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give one with pictures of single things")
    table = root / "labels.csv"
    rows = _table(table) if table.exists() else [{"file": path.name} for path in _pictures(root)]
    things = []
    for row in rows:
        file = row["file"]
        name = row.get("label") or re.sub(r"[_-]+", " ", Path(file).stem).strip()
        family = (row.get("subcategory") or "").split("-")[0]
        picture = _square(read_image(root / file))
        things.append(Thing(name=name, plural=row.get("plural") or plural(name), family=family, picture=picture))
    names = [thing.name for thing in things]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{root}: {twice[0]!r} names more than one picture; keep one of each")
    members = [thing.family for thing in things]
    near_alike = tuple(thing for thing in things if thing.family and members.count(thing.family) > 1)
    if len({thing.family for thing in near_alike}) < 2:  # nothing to compare a family with
        near_alike = ()
    return Vocabulary(tuple(things), near_alike, str(root))


def _pictures(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.suffix.lower() in _PICTURE_FILES)


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{key: value for key, value in row.items() if key and value} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error
    for number, row in enumerate(rows, start=2):
        if "file" not in row:
            raise DataError(f"{path}:{number}: has no file; the table needs the columns file and label")
    return rows


def _square(picture: Image.Image) -> Image.Image:
    """In the middle of a white square."""
    side = max(picture.size)
    if picture.size == (side, side):
        return picture
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
