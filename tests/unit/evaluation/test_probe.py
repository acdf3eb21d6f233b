"""The probe: encoders whose answers are known beforehand get the figures that they must get."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clip.errors import ConfigError
from clip.evaluation.probe import ABILITIES, ProbeResult, render, run
from clip.evaluation.scenes import KINDS, NUMBERS, Item, Kind, draw, make_item, shapes
from clip.evaluation.things import Vocabulary, read_things
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.simple_tokenizer import default_tokenizer

COUNT = 24
WIDTH = 1024
EMOJI = Path(__file__).parents[3] / "examples" / "emoji"

Reading = Callable[[str], Iterable[str]]
"""What of a caption reaches the embedding: one dimension each."""


def exactly(caption: str) -> list[str]:
    return [caption]


def bag_of_words(caption: str) -> list[str]:
    return ["a" if word == "an" else word for word in caption.split()]  # order alone is lost, also before vowels


def without_numbers(caption: str) -> list[str]:
    return [word[:4] for word in caption.split()[1:]]


def nothing(caption: str) -> list[str]:
    return ["the same for all"]


class Oracle(nn.Module):
    """Knows the caption of each picture, and embeds of both what ``reading`` leaves. It is its own preprocess."""

    context_length = 77
    vocab_size = 49408
    size = 1
    config = types.SimpleNamespace(embed_dim=WIDTH)

    def __init__(
        self,
        reading: Reading,
        kinds: Iterable[Kind] = KINDS,
        *,
        seed: int = 0,
        things: Vocabulary | None = None,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())
        self.eval()
        self.reading = reading
        self._dimensions: dict[str, int] = {}
        self._captions: dict[bytes, str] = {}
        self._seen: list[str] = []
        for kind in kinds:
            for index in range(COUNT):
                item = make_item(kind, index, seed=seed, vocabulary=things or shapes())
                captions = reversed(item.captions) if reverse else item.captions
                for scene, caption in zip(item.scenes, captions, strict=True):
                    self._captions[draw(scene).tobytes()] = caption

    def __call__(self, picture: Image.Image) -> Tensor:
        return self._embedded(self._captions[picture.tobytes()])

    def encode_image(self, embedded: Tensor) -> Tensor:
        return embedded

    def encode_text(self, ids: Tensor) -> Tensor:
        tokenizer = default_tokenizer()
        texts = [tokenizer.decode(i for i in row if 0 < i < 49406).strip() for row in ids.tolist()]
        return torch.stack([self._embedded(text) for text in texts])

    def _embedded(self, caption: str) -> Tensor:
        features = torch.zeros(WIDTH)
        for word in self.reading(caption):
            features[self._dimensions.setdefault(word, len(self._dimensions))] += 1
        return features


def probed(oracle: Oracle, kinds: tuple[Kind, ...] = KINDS, **options: object) -> ProbeResult:
    return run(oracle, oracle, kinds=kinds, count=COUNT, **options)  # type: ignore[arg-type]


def test_who_reads_the_scene_gets_everything() -> None:
    result = probed(Oracle(exactly))
    assert [kind.kind for kind in result.kinds] == list(KINDS)
    for kind in result.kinds:
        for measure in (kind.accuracy, kind.control, kind.text, kind.image, kind.group):
            assert measure.value == 1.0, measure
            assert (measure.n, measure.interval, measure.high) == (COUNT, "wilson", 1.0)
            assert measure.low == pytest.approx(COUNT / (COUNT + 1.96**2), abs=1e-3)
    assert [kind.standing for kind in result.kinds] == ["partly"] * 6  # of 24 items one cannot say more
    assert result.kinds[0].accuracy.chance == pytest.approx(1 / 6)
    assert [kind.accuracy.chance for kind in result.kinds[1:]] == [0.5, 0.5, 0.5, 0.5, 0.25]


def test_a_bag_of_words_is_at_chance_where_only_the_order_tells() -> None:
    kinds: tuple[Kind, ...] = ("colour", "left-right", "above-below")
    for result in probed(Oracle(bag_of_words, kinds), kinds).kinds:
        assert result.accuracy.value == 0.5  # exactly: each item is a tie of two
        assert result.control.value == 1.0
        assert (result.text.value, result.group.value) == (0.0, 0.0)  # there, a tie is a failure
        assert result.standing == "cannot"
        low, high = (round(100 * share) for share in (result.accuracy.low, result.accuracy.high))
        assert result.verdict == (
            f"cannot {ABILITIES[result.kind]}: 50 % of {COUNT}, chance 50 %, [{low}, {high}]; "
            "yet it names the parts in 100 % (chance 50 %)"
        )


def test_a_bag_of_words_misses_a_no_that_moves_and_sees_one_that_appears() -> None:
    (result,) = probed(Oracle(bag_of_words, ["negation"]), ("negation",)).kinds
    assert {measure.name: measure.value for measure in result.variants} == {
        "negation/denied": 1.0,
        "negation/exchanged": 0.5,
    }
    assert sum(measure.n for measure in result.variants) == COUNT


def test_who_sees_things_and_no_numbers_cannot_count() -> None:
    (result,) = probed(Oracle(without_numbers, ["counting"]), ("counting",)).kinds
    assert result.accuracy.value == pytest.approx(1 / 6)
    assert result.control.value == 1.0
    assert result.standing == "cannot"
    assert [measure.title for measure in result.variants] == [f"counting: {number}" for number in NUMBERS]


def test_of_who_sees_nothing_nothing_is_said() -> None:
    for result in probed(Oracle(nothing)).kinds:
        assert result.accuracy.value == pytest.approx(result.accuracy.chance)
        assert result.control.value == pytest.approx(result.accuracy.chance)
        assert result.image.value == 0.0
        assert result.standing == "unseen"
        assert "nor does it name the parts" in result.verdict


def test_who_takes_left_for_right_is_worse_than_chance() -> None:
    (result,) = probed(Oracle(exactly, ["left-right"], reverse=True), ("left-right",)).kinds
    assert result.accuracy.value == 0.0
    assert result.standing == "reverses"
    assert result.verdict.startswith("is wrong more often than by chance when asked to tell left from right: 0 % of 24")


def test_plainly_can_needs_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "COUNT", 60)
    (result,) = probed(Oracle(exactly, ["fine"]), ("fine",)).kinds
    assert result.standing == "can"
    assert result.verdict == "can tell near-alikes apart: 100 % of 60, chance 25 %, [94, 100]"


def test_pictures_of_a_folder() -> None:
    things = read_things(EMOJI)
    result = probed(Oracle(bag_of_words, things=things), things=things)
    by_kind = {kind.kind: kind for kind in result.kinds}
    assert by_kind["colour"].accuracy.value == 0.5
    assert by_kind["colour"].control.value == 1.0
    assert by_kind["fine"].accuracy.value == 1.0
    assert 1 / 3 <= by_kind["fine"].accuracy.chance <= 1 / 2  # families of two and three
    assert result.things == str(EMOJI)


def test_examples_are_the_first_items_whatever_came_out() -> None:
    (result,) = probed(Oracle(bag_of_words, ["colour"]), ("colour",), examples=3).kinds
    assert len(result.examples) == 3
    for index, example in enumerate(result.examples):
        item: Item = make_item("colour", index, seed=0, vocabulary=shapes())
        assert example.picture.tobytes() == draw(item.scenes[0]).tobytes()
        assert example.captions == item.captions
        assert example.cosines[0] == pytest.approx(1)
        assert not example.is_right  # it shares the first place
    (result,) = probed(Oracle(exactly, ["colour"]), ("colour",), examples=1).kinds
    assert result.examples[0].is_right
    assert result.examples[0].taken_for == result.examples[0].captions[0]


def test_the_template_is_put_around_every_caption(tiny_vit: CLIP) -> None:
    seen: list[str] = []
    oracle = Oracle(lambda caption: seen.append(caption) or [caption], ["colour"])
    run(oracle, oracle, kinds=["colour"], count=2, template="a drawing of {}")  # type: ignore[arg-type]
    assert any(text.startswith("a drawing of a") for text in seen)
    with pytest.raises(ConfigError, match=r"no \{\}"):
        run(tiny_vit, Preprocess(size=32), kinds=["colour"], count=1, template="a drawing")


def test_json_and_progress_of_a_real_model(tiny_vit: CLIP) -> None:
    scenes: list[int] = []
    result = run(tiny_vit, Preprocess(size=32), count=3, batch_size=4, advance=scenes.append)
    assert sum(scenes) == 2 * 3 * len(KINDS)
    fields = json.loads(json.dumps(result.to_dict()))
    assert (fields["things"], fields["count"], fields["seed"], fields["omitted"]) == ("shapes", 3, 0, [])
    assert list(fields["kinds"]) == list(KINDS)
    assert set(fields["kinds"]["colour"]) == {"standing", "verdict", "accuracy", "control", "text", "image", "group"}
    assert len({measure.name for measure in result.measures}) == len(result.measures)
    again = run(tiny_vit, Preprocess(size=32), count=3, batch_size=5)
    assert [m.value for m in again.measures] == [m.value for m in result.measures]


def test_what_things_do_not_allow_is_named(tiny_vit: CLIP, tmp_path: Path) -> None:
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(tmp_path / f"thing{'abcdefgh'[i]}.png")
    things = read_things(tmp_path)
    result = run(tiny_vit, Preprocess(size=32), count=1, things=things)
    assert result.omitted == ("fine",)
    with pytest.raises(ConfigError, match="two families"):
        run(tiny_vit, Preprocess(size=32), kinds=["fine"], count=1, things=things)


def test_bad_options(tiny_vit: CLIP) -> None:
    for options, message in (
        ({"count": 0}, "count is 0"),
        ({"kinds": []}, "kinds is empty"),
        ({"kinds": ["colours"]}, r"'colours' is not among .* colour, counting"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tiny_vit, Preprocess(size=32), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sheet_to_look_at(kind: Kind) -> None:
    sheet = render(kind, count=2, size=80)
    assert sheet.size == (2 * 88 + 8, 2 * (80 + 52) + 8)
    item = make_item(kind, 1, seed=0, vocabulary=shapes())
    assert sheet.crop((96, 8, 176, 88)).tobytes() == draw(item.scenes[0], 80).tobytes()
