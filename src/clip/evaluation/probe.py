"""What a model cannot do, measured: counting, binding, spatial relations, negation, and a close look.

Each item is a generated scene with its caption and wrong captions that differ from it in just the probed fact, most of
them by the same words in another order. An encoder that reads a caption as a bag of words is therefore at chance,
however well it sees (Thrush et al. 2022; Yuksekgonul et al. 2023). Beside the accuracy stands a control: the same
pictures and as many captions, but the wrong ones name something that is not there. A model that fails both does not see
the parts, and nothing follows about the fact; one that passes the control alone sees the parts and cannot put them
together.

The scenes are drawings. A model of photographs may do worse on them than on photographs, and one that passes here need
not pass there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean as mean
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from clip.errors import ConfigError
from clip.evaluation.results import Measure
from clip.evaluation.scenes import NUMBERS, Item, Kind, draw, kinds_of, make_item, shapes
from clip.evaluation.things import Vocabulary
from clip.features import encode_images, encode_texts
from clip.inference.loading import Model
from clip.intervals import wilson
from clip.preprocess import Preprocess
from clip.prompts import fill

__all__ = ["ABILITIES", "DEFAULT_COUNT", "KindResult", "ProbeExample", "ProbeResult", "Standing", "render", "run"]

Standing = Literal["can", "partly", "cannot", "reverses", "unseen"]

ABILITIES: dict[Kind, str] = {
    "counting": "count to six",
    "colour": "tell which thing has which colour",
    "left-right": "tell left from right",
    "above-below": "tell above from below",
    "negation": "tell what is there from what is said to be missing",
    "fine": "tell near-alikes apart",
}
"""What each kind asks, after "can" and "cannot"."""

DEFAULT_COUNT = 200
"""Items of each kind: enough for an interval of 14 points at an accuracy of one half."""

_RELIABLE = 0.9
"""The lower end of the interval must reach this for a plain "can"."""
_TIE = 1e-6
"""Cosines that differ by less are equal: rounding of single precision must not decide for a bag of words."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeExample:
    """One scene as the model saw it."""

    picture: Image.Image
    captions: tuple[str, ...]
    """The right one first."""
    cosines: tuple[float, ...]
    """Of the picture with each caption."""
    is_right: bool
    """Whether the right caption has the largest cosine, alone."""

    @property
    def taken_for(self) -> str:
        """The caption with the largest cosine."""
        return self.captions[max(range(len(self.captions)), key=self.cosines.__getitem__)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KindResult:
    """What came out for one kind of item."""

    kind: Kind
    accuracy: Measure
    """Share of scenes whose right caption has the largest cosine among those that differ in the probed fact. Where k
    captions share it, each counts 1/k."""
    control: Measure
    """The same with wrong captions that name something which is not there."""
    text: Measure
    """Of pairs of scenes: both scenes prefer their own caption to the other's (Thrush et al. 2022, equation 1)."""
    image: Measure
    """Both captions prefer their own scene (equation 2)."""
    group: Measure
    """Both at once (equation 3). In these three a tie is a failure."""
    variants: tuple[Measure, ...]
    """Accuracy by variant of the kind, such as the number to count; empty where there is only one."""
    standing: Standing
    verdict: str
    """One sentence."""
    examples: tuple[ProbeExample, ...]
    """The first items, whatever came out."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (self.accuracy, self.control, self.text, self.image, self.group, *self.variants)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeResult:
    """What came out for all kinds; the ``clip.evaluation.results.Findings`` of ``Evaluation.probe``."""

    kinds: tuple[KindResult, ...]
    count: int
    """Items of each kind."""
    seed: int
    things: str
    """The vocabulary: "shapes", or the folder of pictures."""
    template: str
    omitted: tuple[Kind, ...]
    """Kinds that these things allow no items of."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        return tuple(measure for kind in self.kinds for measure in kind.measures)

    @property
    def summary(self) -> tuple[Measure, ...]:
        return tuple(measure for kind in self.kinds for measure in (kind.accuracy, kind.control))

    @property
    def verdicts(self) -> tuple[str, ...]:
        return tuple(kind.verdict for kind in self.kinds)

    def to_dict(self) -> dict[str, Any]:
        return {
            "things": self.things,
            "count": self.count,
            "seed": self.seed,
            "template": self.template,
            "omitted": list(self.omitted),
            "kinds": {
                kind.kind: {
                    "standing": kind.standing,
                    "verdict": kind.verdict,
                    **{measure.name.partition("/")[2]: measure.to_dict() for measure in kind.measures},
                }
                for kind in self.kinds
            },
        }


def run(
    model: Model,
    preprocess: Preprocess,
    *,
    kinds: Sequence[Kind] | None = None,
    count: int = DEFAULT_COUNT,
    seed: int = 0,
    things: Vocabulary | None = None,
    template: str = "{}",
    batch_size: int = 32,
    examples: int = 8,
    advance: Callable[[int], None] = lambda count: None,
) -> ProbeResult:
    """Probes the model with ``count`` generated items of each kind.

    kinds: by default all that the things allow. things: shapes by default, or what ``read_things`` read.
    template: what the captions are put into, such as "a drawing of {}".
    advance: told how many scenes are done; there are two to an item.
    Raises ConfigError for a kind that is not known or that the things do not allow.
    """
    if count < 1:
        raise ConfigError(f"count is {count}; it must be at least 1")
    vocabulary = things or shapes()
    allowed = kinds_of(vocabulary)
    chosen = tuple(dict.fromkeys(allowed if kinds is None else kinds))
    if not chosen:
        raise ConfigError("kinds is empty; name at least one, or pass None for all")
    items = {
        kind: [make_item(kind, index, seed=seed, vocabulary=vocabulary) for index in range(count)] for kind in chosen
    }
    results = tuple(_probed(model, preprocess, items[kind], template, batch_size, examples, advance) for kind in chosen)
    omitted = () if kinds is not None else tuple(kind for kind in ABILITIES if kind not in allowed)
    return ProbeResult(
        kinds=results, count=count, seed=seed, things=vocabulary.name, template=template, omitted=omitted
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scored:
    """Cosines of one item."""

    own: Tensor
    """(captions,), of the first scene with its right caption and the wrong ones."""
    control: Tensor
    """(captions,), with its right caption and those of the control."""
    square: Tensor
    """(2, 2), of the two scenes with their two captions."""


def _probed(
    model: Model,
    preprocess: Preprocess,
    items: Sequence[Item],
    template: str,
    batch_size: int,
    examples: int,
    advance: Callable[[int], None],
) -> KindResult:
    kind, count = items[0].kind, len(items)
    scored = _scored(model, preprocess, items, template, batch_size, advance)
    chance = mean(1 / len(score.own) for score in scored)
    hits = [_hit(score.own) for score in scored]
    accuracy = _measure(f"{kind}/accuracy", f"{kind}: right caption", sum(hits), count, chance)
    control_hits = sum(_hit(score.control) for score in scored)
    control = _measure(f"{kind}/control", f"{kind}: names the parts (control)", control_hits, count, chance)
    squares = torch.stack([score.square for score in scored])  # (items, scenes, captions)
    is_text = _prefers_diagonal(squares)
    is_image = _prefers_diagonal(squares.transpose(1, 2))
    standing, verdict = _judged(kind, accuracy, control)
    pairs = "pairs of scenes"
    return KindResult(
        kind=kind,
        accuracy=accuracy,
        control=control,
        text=_measure(f"{kind}/text", f"{kind}: both captions", int(is_text.sum()), count, 1 / 4, of=pairs),
        image=_measure(f"{kind}/image", f"{kind}: both scenes", int(is_image.sum()), count, 1 / 4, of=pairs),
        group=_measure(
            f"{kind}/group", f"{kind}: captions and scenes", int((is_text & is_image).sum()), count, 1 / 6, of=pairs
        ),
        variants=tuple(_by_variant(items, scored, hits)),
        standing=standing,
        verdict=verdict,
        examples=tuple(
            ProbeExample(
                picture=draw(item.scenes[0]),
                captions=(item.captions[0], *item.wrong),
                cosines=tuple(score.own.tolist()),
                is_right=hit == 1,
            )
            for item, score, hit in zip(items[:examples], scored, hits, strict=False)
        ),
    )


def _scored(
    model: Model,
    preprocess: Preprocess,
    items: Sequence[Item],
    template: str,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[_Scored]:
    texts = list(dict.fromkeys(text for item in items for text in (*item.captions, *item.wrong, *item.control)))
    row = {text: i for i, text in enumerate(texts)}
    prompts = [fill(template, text) for text in texts]
    table = torch.from_numpy(np.concatenate([batch.embeddings for batch in encode_texts(model, prompts)]))
    pictures = (draw(scene) for item in items for scene in item.scenes)
    parts = []
    for batch in encode_images(model, preprocess, pictures, batch_size=batch_size):
        parts.append(batch.embeddings)
        advance(len(batch.positions))
    scenes = torch.from_numpy(np.concatenate(parts)).view(len(items), 2, -1)

    def embedded(captions: Sequence[str]) -> Tensor:
        return table[[row[caption] for caption in captions]]

    return [
        _Scored(
            own=embedded((item.captions[0], *item.wrong)) @ pair[0],
            control=embedded((item.captions[0], *item.control)) @ pair[0],
            square=pair @ embedded(item.captions).t(),
        )
        for item, pair in zip(items, scenes, strict=True)
    ]


def _prefers_diagonal(squares: Tensor) -> Tensor:
    """(N, 2, 2) → (N,) bool: in both rows the entry on the diagonal is the larger one. A tie is none."""
    diagonal = squares.diagonal(dim1=1, dim2=2)
    return ((diagonal - squares.flip(2).diagonal(dim1=1, dim2=2)) > _TIE).all(dim=1)


def _hit(scores: Tensor) -> float:
    """scores: (captions,), the right one first. 1 if it is the largest, 1/k if k share that place, 0 otherwise."""
    best = scores.max() - _TIE
    return 1 / int((scores >= best).sum()) if scores[0] >= best else 0.0


def _by_variant(items: Sequence[Item], scored: Sequence[_Scored], hits: Sequence[float]) -> Iterator[Measure]:
    kind, variants = items[0].kind, {item.variant for item in items}
    if len(variants) < 2:
        return
    for variant in sorted(variants, key=_order):
        rows = [i for i, item in enumerate(items) if item.variant == variant]
        chance = mean(1 / len(scored[i].own) for i in rows)
        yield _measure(f"{kind}/{variant}", f"{kind}: {variant}", sum(hits[i] for i in rows), len(rows), chance)


def _order(variant: str) -> tuple[int, str]:
    """Numbers by value, other names by letter."""
    return (NUMBERS.index(variant) if variant in NUMBERS else 0), variant


def _measure(name: str, title: str, hits: float, n: int, chance: float, of: str = "scenes") -> Measure:
    low, high = wilson(hits / n, n)
    return Measure(
        name=name, title=title, value=hits / n, low=low, high=high, n=n, of=of, chance=chance, interval="wilson"
    )


def _judged(kind: Kind, accuracy: Measure, control: Measure) -> tuple[Standing, str]:
    """What the figures allow to be said."""
    ability, chance = ABILITIES[kind], accuracy.chance
    assert chance is not None
    figures = (
        f"{_percent(accuracy.value)} % of {accuracy.n}, chance {_percent(chance)} %, "
        f"[{_percent(accuracy.low)}, {_percent(accuracy.high)}]"
    )
    parts = f"{_percent(control.value)} % (chance {_percent(chance)} %)"
    if accuracy.low > chance:
        if accuracy.low >= _RELIABLE:
            return "can", f"can {ability}: {figures}"
        return "partly", f"can {ability} better than chance, not reliably: {figures}; names the parts in {parts}"
    if accuracy.high < chance:
        return "reverses", f"is wrong more often than by chance when asked to {ability}: {figures}"
    if control.low > chance and accuracy.high < control.low:
        return "cannot", f"cannot {ability}: {figures}; yet it names the parts in {parts}"
    return "unseen", f"does not {ability}: {figures}; nor does it name the parts clearly better, in {parts}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def render(
    kind: Kind, *, count: int = 6, seed: int = 0, things: Vocabulary | None = None, size: int = 160
) -> Image.Image:
    """The first items of a kind as one picture to look at: a column for each, its two scenes with their captions."""
    vocabulary = things or shapes()
    font = ImageFont.load_default(size=12)
    text_height = 52
    sheet = Image.new("RGB", (count * (size + 8) + 8, 2 * (size + text_height) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for index in range(count):
        item = make_item(kind, index, seed=seed, vocabulary=vocabulary)
        for which, (scene, caption) in enumerate(zip(item.scenes, item.captions, strict=True)):
            x, y = 8 + index * (size + 8), 8 + which * (size + text_height)
            sheet.paste(draw(scene, size), (x, y))
            pen.rectangle((x - 1, y - 1, x + size, y + size), outline=(200, 200, 200))
            pen.text((x, y + size + 4), _wrapped(caption, font, size), fill="black", font=font, spacing=1)
    return sheet


def _wrapped(text: str, font: Any, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
