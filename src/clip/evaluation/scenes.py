"""Generated scenes in pairs that differ in one fact, with captions that differ in just that fact.

Everything about item ``index`` of a kind follows from (part, kind, seed, index): no item depends on how many there are.

What is tested and what may be trained on is kept apart by words, not only by seeds: the things and colours that an item
speaks of put it, by a hash, in the part "test" (a third) or "train". A caption of the one part is in the other under
no seed. ``Compositions`` is a source of training data made of the part "train".
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import random
from collections.abc import Callable
from typing import Literal, get_args

from PIL import Image

from clip.data.records import Sample
from clip.errors import ConfigError, choices
from clip.evaluation.things import COLOURS, NEAR_ALIKE, SHAPES, Colour, Thing, Vocabulary

__all__ = [
    "KINDS",
    "NUMBERS",
    "Compositions",
    "Item",
    "Kind",
    "Part",
    "Placed",
    "Scene",
    "draw",
    "kinds_of",
    "make_item",
    "shapes",
]

Kind = Literal["counting", "colour", "left-right", "above-below", "negation", "fine"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Part = Literal["test", "train"]

_TEST_SHARE = 1 / 3
_SALT = "everyclip 1235"
"""Of the hash; chosen such that each kind has about a third of the words of ``shapes()`` in its test, and that each
shape and colour is in both parts."""
_MOST_DRAWS = 2000
NUMBERS = ("one", "two", "three", "four", "five", "six")
_FINE_CHOICES = 4
_JITTER = 10
"""How far a channel of a colour may be from its place in COLOURS; no two colours come near one another by it."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A thing at its place."""

    thing: Thing
    colour: str | None
    """A key of COLOURS; None for a picture without a frame."""
    rgb: Colour | None
    centre: tuple[float, float]
    """x and y as shares of the picture's side."""
    side: float
    """As a share of the picture's."""
    turn: float
    """In degrees."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What ``draw`` draws."""

    ground: tuple[Colour, Colour]
    """At the top and the bottom edge."""
    placed: tuple[Placed, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Item:
    """Two scenes that differ in the probed fact, and captions for them."""

    kind: Kind
    variant: str
    """A part of the kind that is worth a figure of its own: the number of things, the family of near-alikes."""
    scenes: tuple[Scene, Scene]
    captions: tuple[str, str]
    """Each right for its scene and wrong for the other."""
    wrong: tuple[str, ...]
    """Everything that the first scene might be taken for: captions[1], and others that differ in the same fact."""
    control: tuple[str, ...]
    """As many captions as ``wrong``, wrong for the first scene because they name something that is not there."""
    words: tuple[str, ...]
    """The things and colours that decide on test or train, sorted; none where there is nothing to keep apart."""


def shapes() -> Vocabulary:
    """The vocabulary that needs no files."""
    return Vocabulary(SHAPES, NEAR_ALIKE, "shapes")


def kinds_of(vocabulary: Vocabulary, part: Part = "test") -> tuple[Kind, ...]:
    """The kinds of items that can be made.

    Pictures without families have no fine-grained split. That of pictures asks for nothing but their names, which any
    training set of such pictures has, so no split into parts would mean anything: it is for tests only.
    """
    has_fine = bool(vocabulary.near_alike) and not (vocabulary.is_pictures and part == "train")
    return tuple(kind for kind in KINDS if kind != "fine" or has_fine)


def make_item(kind: Kind, index: int, *, seed: int, vocabulary: Vocabulary, part: Part = "test") -> Item:
    """Item ``index`` of the endless series of this kind.

    Raises ConfigError if the vocabulary has no words for this kind and part.
    """
    known = kinds_of(vocabulary, part)
    if kind not in known:
        remedy = "; it needs two families of things, by a column subcategory of labels.csv" if kind == "fine" else ""
        raise ConfigError(
            f"kind {kind!r} is not among those of {vocabulary.name} for {part}: {choices(kind, known)}{remedy}"
        )
    rng = random.Random(f"everyclip scenes/{part}/{kind}/{seed}/{index}")
    for _ in range(_MOST_DRAWS):
        item = _MAKERS[kind](rng, vocabulary)
        if not item.words or _part(item) == part:
            return item
    raise ConfigError(
        f"{vocabulary.name} has {len(vocabulary.things)} things, and no words among them for the part {part!r} of "
        f"{kind!r}; add some"
    )


def _part(item: Item) -> Part:
    digest = hashlib.sha256("/".join((_SALT, item.kind, *item.words)).encode()).digest()
    return "test" if digest[0] < 256 * _TEST_SHARE else "train"


def draw(scene: Scene, size: int = 224) -> Image.Image:
    """The scene as a picture (size, size) of mode RGB."""
    top, bottom = (Image.new("RGB", (size, size), colour) for colour in scene.ground)
    canvas = Image.composite(bottom, top, Image.linear_gradient("L").resize((size, size)))
    for placed in scene.placed:
        side = max(1, round(placed.side * size))
        x, y = (round(share * size - side / 2) for share in placed.centre)
        placed.thing.draw(canvas, (x, y), side, placed.rgb, placed.turn)
    return canvas


# What an item of each kind is -----------------------------------------------------------------------------------------


def _counting(rng: random.Random, vocabulary: Vocabulary) -> Item:
    """ "three red circles" against one to six of them; the control asks what there are three of."""
    thing, *others = rng.sample(vocabulary.things, min(6, len(vocabulary.things)))
    others += rng.choices(others, k=5 - len(others))
    (colour,) = _colours(rng, vocabulary, 1)
    first, second = rng.sample(range(6), 2)
    side = rng.uniform(0.18, 0.26)
    cells = [(x, y) for x in range(3) for y in range(3)]
    rng.shuffle(cells)
    look = _look(rng, thing, colour, (0.5, 0.5), side)

    def near(cell: int) -> float:
        return 0.05 + (cell + 0.5) * 0.3 + rng.uniform(-0.018, 0.018)

    all_six = []
    for x, y in cells[:6]:
        own_side = side * rng.uniform(0.92, 1.08)
        centre = (near(x), near(y))
        all_six.append(dataclasses.replace(look, centre=centre, side=own_side, turn=_turn(rng, thing)))
    ground = _ground(rng, vocabulary, [colour])
    captions = [thing.counted(number, i == 0, colour) for i, number in enumerate(NUMBERS)]
    wrong = [captions[second], *(caption for i, caption in enumerate(captions) if i not in (first, second))]
    return Item(
        kind="counting",
        variant=NUMBERS[first],
        scenes=(Scene(ground, tuple(all_six[: first + 1])), Scene(ground, tuple(all_six[: second + 1]))),
        captions=(captions[first], captions[second]),
        wrong=tuple(wrong),
        control=tuple(other.counted(NUMBERS[first], first == 0, colour) for other in others),
        words=_words(thing.name, colour),
    )


def _colour(rng: random.Random, vocabulary: Vocabulary) -> Item:
    """ "a red circle and a blue square" against the colours exchanged; the control names a third colour or thing."""
    one, two, absent = rng.sample(vocabulary.things, 3)
    colour, other, third = rng.sample(_visible(vocabulary), 3)
    places = _two_places(rng, rng.choice(("row", "column", "diagonal")))
    ground = _ground(rng, vocabulary, [colour, other])
    first, second = (
        Scene(
            ground,
            tuple(_look(rng, thing, hue, *place) for thing, hue, place in zip((one, two), hues, places, strict=True)),
        )
        for hues in ((colour, other), (other, colour))
    )

    def caption(*pairs: tuple[Thing, str]) -> str:
        return " and ".join(thing.named(hue) for thing, hue in pairs)

    absences = (
        ((one, third), (two, other)),
        ((one, colour), (two, third)),
        ((absent, colour), (two, other)),
        ((one, colour), (absent, other)),
    )
    captions = (caption((one, colour), (two, other)), caption((one, other), (two, colour)))
    return Item(
        kind="colour",
        variant="",
        scenes=(first, second),
        captions=captions,
        wrong=captions[1:],
        control=(caption(*rng.choice(absences)),),
        words=_words(one.name, two.name, colour, other),
    )


def _left_right(rng: random.Random, vocabulary: Vocabulary) -> Item:
    return _beside(rng, vocabulary, "left-right", "row", ("to the left of", "to the right of"))


def _above_below(rng: random.Random, vocabulary: Vocabulary) -> Item:
    return _beside(rng, vocabulary, "above-below", "column", ("above", "below"))


def _beside(rng: random.Random, vocabulary: Vocabulary, kind: Kind, axis: str, relations: tuple[str, str]) -> Item:
    """ "a circle above a square" against the two exchanged; the control names a third thing."""
    one, two, absent = rng.sample(vocabulary.things, 3)
    colours = _colours(rng, vocabulary, 2)
    ground = _ground(rng, vocabulary, colours)
    places = _two_places(rng, axis)
    looks = [_look(rng, thing, hue, *place) for thing, hue, place in zip((one, two), colours, places, strict=True)]
    swapped = [dataclasses.replace(look, centre=place[0]) for look, place in zip(looks, reversed(places), strict=True)]
    which = rng.randrange(2)
    relation = relations[which]
    pair = (one, two) if which == 0 else (two, one)  # `one` is at the left or the top
    captions = (
        f"{pair[0].named()} {relation} {pair[1].named()}",
        f"{pair[1].named()} {relation} {pair[0].named()}",
    )
    control = rng.choice(
        (f"{absent.named()} {relation} {pair[1].named()}", f"{pair[0].named()} {relation} {absent.named()}")
    )
    return Item(
        kind=kind,
        variant=relation,
        scenes=(Scene(ground, tuple(looks)), Scene(ground, tuple(swapped))),
        captions=captions,
        wrong=captions[1:],
        control=(control,),
        words=_words(one.name, two.name),
    )


def _negation(rng: random.Random, vocabulary: Vocabulary) -> Item:
    """Two tests. "exchanged": a circle alone, "a circle and no square" against "a square and no circle". "denied": a
    circle and a square, "a circle and a square" against "a circle and no square", or the circle alone against the same.
    """
    one, two, absent = rng.sample(vocabulary.things, 3)
    colours = _colours(rng, vocabulary, 2)
    ground = _ground(rng, vocabulary, colours)
    places = _two_places(rng, rng.choice(("row", "column", "diagonal")))
    look, other_look = (
        _look(rng, thing, hue, *place) for thing, hue, place in zip((one, two), colours, places, strict=True)
    )
    alone = Scene(ground, (look,))
    if rng.random() < 0.5:
        no = rng.choice(("{} and no {}", "{} but no {}", "{} without {}"))

        def caption(present: Thing, missing: Thing) -> str:
            return no.format(present.named(), missing.named(article="without" in no))

        replaced = dataclasses.replace(other_look, centre=look.centre, side=look.side)
        scenes = (alone, Scene(ground, (replaced,)))
        captions = (caption(one, two), caption(two, one))
        control, variant = caption(absent, two), "exchanged"
    else:
        both = Scene(ground, (look, other_look))
        with_both, with_one = f"{one.named()} and {two.named()}", f"{one.named()} and no {two.named(article=False)}"
        scenes, captions, variant = (both, alone), (with_both, with_one), "denied"
        control = rng.choice((f"{absent.named()} and {two.named()}", f"{one.named()} and {absent.named()}"))
        if rng.random() < 0.5:
            scenes, captions = (alone, both), (with_one, with_both)
            control = f"{absent.named()} and no {two.named(article=False)}"
    return Item(
        kind="negation",
        variant=variant,
        scenes=scenes,
        captions=captions,
        wrong=captions[1:],
        control=(control,),
        words=_words(one.name, two.name),
    )


def _fine(rng: random.Random, vocabulary: Vocabulary) -> Item:
    """ "a red pentagon" against hexagon, octagon and triangle; the control is against things of other families."""
    families = vocabulary.families()
    own = rng.choice(families)
    thing, *alike = rng.sample(own, min(_FINE_CHOICES, len(own)))
    others = [other for family in families if family is not own for other in family]
    if len(others) < len(alike):
        others = others * len(alike)
    (colour,) = _colours(rng, vocabulary, 1)
    ground = _ground(rng, vocabulary, [colour])
    side = rng.uniform(0.4, 0.75)
    centre = tuple(rng.uniform(side * 0.55, 1 - side * 0.55) for _ in range(2))
    look = _look(rng, thing, colour, (centre[0], centre[1]), side)
    counterpart = dataclasses.replace(look, thing=alike[0], turn=_turn(rng, alike[0]))
    return Item(
        kind="fine",
        variant=thing.family,
        scenes=(Scene(ground, (look,)), Scene(ground, (counterpart,))),
        captions=(thing.named(colour), alike[0].named(colour)),
        wrong=tuple(other.named(colour) for other in alike),
        control=tuple(other.named(colour) for other in rng.sample(others, len(alike))),
        words=() if vocabulary.is_pictures else _words(thing.family, colour),
    )


_MAKERS: dict[Kind, Callable[[random.Random, Vocabulary], Item]] = {
    "counting": _counting,
    "colour": _colour,
    "left-right": _left_right,
    "above-below": _above_below,
    "negation": _negation,
    "fine": _fine,
}


# How it looks ---------------------------------------------------------------------------------------------------------


def _words(*words: str | None) -> tuple[str, ...]:
    return tuple(sorted(word for word in words if word is not None))


def _colours(rng: random.Random, vocabulary: Vocabulary, count: int) -> list[str | None]:
    """Different colours for shapes; none for pictures, which have their own."""
    if vocabulary.is_pictures:
        return [None] * count
    return list(rng.sample(_visible(vocabulary), count))


def _visible(vocabulary: Vocabulary) -> list[str]:
    """The colours that the grounds set off: pictures lie on white."""
    return [colour for colour in COLOURS if not (vocabulary.is_pictures and colour == "white")]


def _look(rng: random.Random, thing: Thing, colour: str | None, centre: tuple[float, float], side: float) -> Placed:
    rgb = None
    if colour is not None:
        red, green, blue = (_clamped(channel + rng.randint(-_JITTER, _JITTER)) for channel in COLOURS[colour])
        rgb = (red, green, blue)
    return Placed(thing=thing, colour=colour, rgb=rgb, centre=centre, side=side, turn=_turn(rng, thing))


def _turn(rng: random.Random, thing: Thing) -> float:
    return rng.uniform(-thing.sway, thing.sway)


def _two_places(rng: random.Random, axis: str) -> list[tuple[tuple[float, float], float]]:
    """Centre and side of two things that do not touch; the first is at the left, at the top, or both."""
    low, high = rng.uniform(0.24, 0.3), rng.uniform(0.7, 0.76)
    sides = [rng.uniform(0.26, 0.4) for _ in range(2)]
    middle = rng.uniform(0.3, 0.7)
    centres = {
        "row": ((low, middle + rng.uniform(-0.06, 0.06)), (high, middle + rng.uniform(-0.06, 0.06))),
        "column": ((middle + rng.uniform(-0.06, 0.06), low), (middle + rng.uniform(-0.06, 0.06), high)),
        "diagonal": rng.choice((((low, low), (high, high)), ((low, high), (high, low)))),
    }[axis]
    return list(zip(centres, sides, strict=True))


def _ground(rng: random.Random, vocabulary: Vocabulary, colours: list[str | None] | list[str]) -> tuple[Colour, Colour]:
    """White for pictures, which lie on white; otherwise plain or a gradient, light or dark, and almost grey."""
    if vocabulary.is_pictures:
        return (255, 255, 255), (255, 255, 255)
    used = [COLOURS[colour] for colour in colours if colour is not None]
    for _ in range(_MOST_DRAWS):
        level = rng.choice((rng.randint(196, 255), rng.randint(40, 100)))
        red, green, blue = (_clamped(level + rng.randint(-6, 6)) for _ in range(3))
        step = rng.choice((0, rng.randint(-30, 30)))
        top = (red, green, blue)
        bottom = (_clamped(red + step), _clamped(green + step), _clamped(blue + step))
        if all(math.dist(ground, colour) > 90 for ground in (top, bottom) for colour in used):
            return top, bottom
    raise AssertionError(f"no ground sets off {colours}")


def _clamped(channel: int) -> int:
    return min(255, max(0, channel))


# For training ---------------------------------------------------------------------------------------------------------


class Compositions:
    """A source (``clip.data.records.Source``) of scenes with captions, none of which is among those of the probes.

    kinds: which, in turn; all that the vocabulary has by default.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        kinds: tuple[Kind, ...] | None = None,
        vocabulary: Vocabulary | None = None,
        size: int = 224,
    ) -> None:
        if count < 1:
            raise ConfigError(f"count is {count}; it must be at least 1")
        self._vocabulary = vocabulary or shapes()
        self._kinds = kinds_of(self._vocabulary, "train") if kinds is None else kinds
        self._count, self._seed, self._size = count, seed, size
        self.name = f"compositions of {self._vocabulary.name}, seed {seed}"
        self.class_names: tuple[str, ...] = ()
        for kind in self._kinds:
            make_item(kind, 0, seed=seed, vocabulary=self._vocabulary, part="train")  # raises now, not in a worker

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """Rows 2i and 2i + 1 of a kind are the two scenes of one item: what differs in one fact comes in pairs."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        item_number, which = divmod(index, 2)
        round_number, place = divmod(item_number, len(self._kinds))
        kind = self._kinds[place]
        item = make_item(kind, round_number, seed=self._seed, vocabulary=self._vocabulary, part="train")
        file = io.BytesIO()
        draw(item.scenes[which], self._size).save(file, "PNG")
        return Sample(key=f"{self.name}:{index}", image=file.getvalue(), captions=(item.captions[which],))
