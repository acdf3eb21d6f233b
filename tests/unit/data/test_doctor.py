"""The doctor on data whose ills are known."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip.data.captions import is_no_text, script
from clip.data.copies import Kept, equal_captions
from clip.data.doctor import examine
from clip.data.doctor_page import report_lines, report_page
from clip.data.findings import Finding, Report, histogram
from clip.data.records import Sample
from clip.errors import ConfigError, DataError


@dataclasses.dataclass
class Listed:
    """A source of samples in memory; a string stands for a record that cannot be read, with its reason."""

    samples: list[Sample | str]
    name: str = "listed"
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        if isinstance(sample, str):
            raise DataError(sample)
        return sample


def _image(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, image_format: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _picture(seed: int) -> bytes:
    return _encoded(_image(seed))


def _sample(key: str, image: bytes | Path, *captions: str, label: int | None = None) -> Sample:
    return Sample(key=key, image=image, captions=captions, label=label)


def _found(report: Report) -> dict[str, int]:
    return {finding.name: finding.count for finding in report.findings if finding.count}


def _finding(report: Report, name: str) -> Finding:
    return next(finding for finding in report.findings if finding.name == name)


def test_healthy_data_has_no_findings() -> None:
    source = Listed([_sample(f"{i}.png", _picture(i), f"picture number {'abcdefgh'[i]}") for i in range(8)])
    seen: list[int] = []
    report = examine(source, batch_size=3, on_progress=seen.append)
    assert _found(report) == {}
    assert (report.records, report.pairs, report.captions) == (8, 8, 8)
    assert (report.batches_per_epoch, report.last_batch, report.equal_captions_per_batch) == (3, 2, 0.0)
    assert sum(seen) == 8
    assert (report.formats, report.scripts, report.ascii_captions) == ({"PNG": 8}, {"Latin": 8}, 8)
    assert (report.sides.minimum, report.sides.median, report.sides.maximum) == (40, 40, 40)
    assert (report.tokens.ranges["up to 8"], report.aspects.ranges["up to 1.5"]) == (8, 8)


def test_each_ill_is_found_and_named() -> None:
    source = Listed(
        [
            "pairs.csv:2: has no picture; name one",
            _sample("cut.png", _picture(0)[:60], "cut off"),
            _sample("missing.png", Path("/nowhere/missing.png"), "not there"),
            _sample("blank.png", _encoded(Image.new("RGB", (20, 20), "red")), "red"),
            _sample("empty.png", _picture(1), "  "),
            _sample("none.png", _picture(2)),
            _sample("long.png", _picture(3), "word " * 90),
            _sample("address.png", _picture(4), "https://example.org/a.html"),
            _sample("digits.png", _picture(5), "12345"),
            _sample("broken.png", _picture(6), "caf\ufffd"),
        ]
    )
    report = examine(source)
    assert _found(report) == {
        "unreadable-records": 1,
        "unreadable-pictures": 2,
        "blank-pictures": 1,
        "empty-captions": 2,
        "long-captions": 1,
        "no-text": 2,
        "broken-text": 1,
    }
    assert report.pairs == 5  # blank, long, address, digits, broken: usable, if not good
    example = _finding(report, "unreadable-records").examples[0]
    assert (example.text, example.places[0].index) == ("pairs.csv:2: has no picture; name one", 0)
    cut, missing = _finding(report, "unreadable-pictures").examples
    assert (cut.places[0].key, missing.places[0].key) == ("cut.png", "missing.png")
    assert cut.text.startswith("damaged or cut off")
    assert _finding(report, "long-captions").examples[0].text.startswith("92 tokens: word")
    assert _finding(report, "blank-pictures").share == 1 / 7


def test_copies_are_counted_once_in_the_strictest_grade() -> None:
    image = _image(0)
    samples: list[Sample | str] = [
        _sample("a.png", _picture(0), "one"),
        _sample("b.png", _picture(0), "two"),  # the same file
        _sample("c.png", _encoded(image, compress_level=0), "three"),  # the same pixels
        _sample("d.jpg", _encoded(image, "JPEG", quality=80), "four"),  # nearly
        _sample("e.jpg", _encoded(image.resize((96, 80)), "JPEG", quality=60), "five"),  # nearly
        *(_sample(f"{i}.png", _picture(i), f"other {'abcdefgh'[i]}") for i in range(1, 6)),
    ]
    random.Random(0).shuffle(samples)
    report = examine(Listed(samples))
    assert _found(report) == {"same-file": 1, "same-pixels": 1, "near-duplicates": 2}
    group = _finding(report, "near-duplicates").examples[0]
    assert group.text == "3 alike"
    assert {place.key for place in group.places} >= {"d.jpg", "e.jpg"}


def test_blank_pictures_are_not_near_duplicates() -> None:
    shades = [_encoded(Image.new("RGB", (20, 20), (200 + i, 200, 200))) for i in range(4)]
    report = examine(Listed([_sample(str(i), data, f"shade {'abcd'[i]}") for i, data in enumerate(shades)]))
    assert _found(report) == {"blank-pictures": 4}


def test_repeated_captions_are_those_of_several_records() -> None:
    source = Listed(
        [
            _sample("0", _picture(0), "a cat", "A  CAT"),  # twice in one record: no harm
            _sample("1", _picture(1), "a Dog", "hound"),
            _sample("2", _picture(2), "a dog"),
            _sample("3", _picture(3), "a dog "),
        ]
    )
    report = examine(source, batch_size=2)
    assert _found(report) == {"repeated-captions": 3}
    example = _finding(report, "repeated-captions").examples[0]
    assert example.text == "3 ×: a Dog"
    assert [place.key for place in example.places] == ["1", "2", "3"]


def test_the_expected_equal_captions_are_those_of_a_simulation() -> None:
    texts = [("a", "b"), ("a",), ("a", "c", "c"), ("c",), ("d",), ("a",)]
    source = Listed([_sample(str(i), _picture(i), *captions) for i, captions in enumerate(texts)])
    report = examine(source, batch_size=4)
    rng = random.Random(0)
    total, rounds = 0, 20_000
    for _ in range(rounds):
        drawn = [rng.choice(captions) for captions in rng.sample(texts, 4)]
        total += sum(drawn[i] == drawn[j] for i in range(4) for j in range(i))
    assert report.equal_captions_per_batch == pytest.approx(total / rounds, rel=0.04)
    empty = Kept(Listed([_sample("0", b"", "")]))
    assert equal_captions(empty, 1) == 0.0


def test_overlap_with_an_evaluation_set() -> None:
    source = Listed([_sample(f"train/{i}", _picture(i), f"caption {'abcdefgh'[i]}") for i in range(6)])
    exact = Listed([_sample("test/0", _picture(3), "new words"), _sample("test/1", _picture(20), "Caption A")], "one")
    near = Listed(
        [
            _sample("test/2", _encoded(_image(4), "JPEG", quality=70), "other words"),
            _sample("test/3", _picture(21), "again others"),
            _sample("test/4", b"no picture", "no picture"),
        ],
        "two",
    )
    report = examine(source, against=[exact, near])
    assert _found(report) == {"overlap-pictures": 2, "overlap-captions": 1}
    pictures = _finding(report, "overlap-pictures")
    assert pictures.of == 4
    assert [[(p.source, p.key) for p in e.places] for e in pictures.examples] == [
        [("one", "test/0"), ("listed", "train/3")],
        [("two", "test/2"), ("listed", "train/4")],
    ]
    assert _finding(report, "overlap-captions").examples[0].text == "Caption A"
    assert report.against == ("one", "two")


def test_classes_repeat_captions_by_design() -> None:
    source = Listed(
        [_sample(str(i), _picture(i), "a cat" if i else "a dog", label=int(i > 0)) for i in range(4)],
        class_names=("dog", "cat"),
    )
    report = examine(source)
    assert _found(report) == {}
    assert report.classes == {"dog": 1, "cat": 3}


@pytest.mark.parametrize("failing", [0, 3])
def test_only_bad_records_still_give_a_report(failing: int) -> None:
    source = Listed(["broken; mend it"] * failing + [_sample("a", b"x", "")])
    report = examine(source)
    assert (report.pairs, report.batches_per_epoch, report.last_batch) == (0, 0, 0)
    assert report.sides.maximum == 0
    assert report_lines(report)
    assert "<h2>Findings</h2>" in report_page(report, source)


def test_a_source_without_records_and_wrong_values_are_errors() -> None:
    with pytest.raises(DataError, match="listed: has no records"):
        examine(Listed([]))
    with pytest.raises(ConfigError, match="batch_size is 0"):
        examine(Listed(["x"]), batch_size=0)
    with pytest.raises(ConfigError, match="context_length is 2"):
        examine(Listed(["x"]), context_length=2)


def test_the_number_of_workers_changes_nothing() -> None:
    samples: list[Sample | str] = [_sample(str(i), _picture(i % 5), f"text {i % 3}") for i in range(30)]
    samples[7] = "seven; mend it"
    assert examine(Listed(samples), workers=1) == examine(Listed(samples), workers=5)


def test_scripts_are_those_of_most_letters() -> None:
    cases = {
        "a photo": "Latin",
        "12 !?": "no letters",
        "…": "no letters",
        "über": "Latin",
        "кот on a mat": "Latin",
        "рыжий кот 2": "Cyrillic",
        "一只猫": "Han",
        "ねこがすき猫": "Hiragana",
        "고양이": "Hangul",
        "قطة": "Arabic",
        "बिल्ली": "Devanagari",
        "ᚠᚢᚦ": "other",
    }
    assert {text: script(text) for text in cases} == cases


@pytest.mark.parametrize("text", ["a.jpg", " images/cat 1.png"[1:].replace(" ", "_"), "http://x.org", "---", "2024"])
def test_no_text(text: str) -> None:
    assert is_no_text(text)


@pytest.mark.parametrize("text", ["a cat", "see http://x.org", "end of story.", "Nr. 5", "猫"])
def test_text(text: str) -> None:
    assert not is_no_text(text)


def test_histograms_have_ranges_with_their_upper_edge() -> None:
    from collections import Counter

    counted = histogram(Counter({1.0: 2, 4.0: 3, 4.5: 1, 99.0: 1}), (4, 8))
    assert counted.ranges == {"up to 4": 5, "up to 8": 1, "over 8": 1}
    assert (counted.minimum, counted.median, counted.maximum) == (1, 4, 99)
    assert histogram(Counter(), (4,)).ranges == {"up to 4": 0, "over 4": 0}


class _Texts(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_hostile_names_and_captions_stay_text_in_lines_json_and_page() -> None:
    evil = "<script>alert(1)</script>\"' onerror=x {{ 1 }} \x1b[31m \udcff"
    source = Listed(
        [
            _sample(evil, _picture(0), evil),
            _sample(evil, _picture(0), evil),
            _sample(evil, b"no picture", "plain"),
            evil,
        ],
        name=evil,
    )
    other = Listed([_sample(evil, _picture(0), evil)], name="other" + evil)
    report = examine(source, against=[other])
    assert {"same-file", "repeated-captions", "overlap-pictures", "unreadable-records"} <= set(_found(report))
    page = report_page(report, source, against=[other])
    assert "script" not in _Texts(page).tags
    assert page.count("data:image/jpeg") >= 6
    json.loads(json.dumps(dataclasses.asdict(report)))
    page.encode("utf-8")


def test_lines_say_what_was_found_with_an_example_and_a_remedy() -> None:
    source = Listed([_sample("a", _picture(0), "https://x.org/a"), *(_sample(str(i), _picture(i), "") for i in (1, 2))])
    lines = report_lines(examine(source))
    assert lines[0] == "listed: 3 records, 1 usable pairs, 3 captions"
    at = next(i for i, line in enumerate(lines) if "captions without a word" in line)
    assert lines[at].strip() == "66.7 %  captions without a word: 2 of 3"
    assert lines[at + 1].strip() == "e.g. 1: ''"
    assert lines[at + 2].strip().startswith("→ remove them")
    assert not any(math.isnan(finding.share) for finding in examine(source).findings)


def test_limits_compare_shares() -> None:
    source = Listed([_sample(str(i), _picture(i), "12" if i == 0 else f"text {'abcd'[i]}") for i in range(4)])
    report = examine(source)
    assert [finding.name for finding in report.above(0.2)] == ["no-text"]
    assert report.above(0.25) == ()
