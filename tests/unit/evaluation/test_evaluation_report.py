"""The page of an evaluation: complete in itself, escaped, and with the figures of the result."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip.data.records import Sample
from clip.errors import ClipError, DataError, MissingDependencyError
from clip.evaluation import report
from clip.evaluation.classification import classification_of
from clip.evaluation.plots import confusion_figure, most_confused
from clip.evaluation.probe import run
from clip.evaluation.results import (
    Comparison,
    Direction,
    Evaluation,
    FailedItem,
    FewShotPoint,
    FewShotResult,
    LinearProbeResult,
    Measure,
    Predictions,
    PromptResult,
    RetrievalResult,
    SweepPoint,
    TemplateScore,
)
from clip.inference.loading import Runtime
from clip.model import CLIP
from clip.preprocess import Preprocess

RUNTIME, OTHER_RUNTIME = Runtime("torch", "bf16", "cpu"), Runtime("openvino", "int8", "cpu")
HOSTILE = "<script>alert(1)</script> $x_ & \"'"
CLASSES = ("fox", "owl", HOSTILE, "cat", "a name that is far too long to stand beside a row of a table", "dog", "cow")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Squares:
    """A source of plain pictures; the third is gone since it was evaluated."""

    name = f"squares {HOSTILE}"
    class_names = CLASSES

    def __init__(self, folder: Path) -> None:
        self.file = folder / "square.png"
        Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(self.file)
        self.reads: list[int] = []

    def __len__(self) -> int:
        return 70

    def __getitem__(self, index: int) -> Sample:
        self.reads.append(index)
        if index == 2:
            raise DataError("squares:2: gone")
        return Sample(key=f"squares:{index}", image=self.file, captions=(f"square {index}",), label=index % 7)


def measure(name: str, value: float, *, is_share: bool = True) -> Measure:
    spread = 0.1 if is_share else 1.0
    return Measure(
        name=name,
        title=f"{name} title",
        value=value,
        low=max(value - spread, 0),
        high=value + spread,
        n=70,
        of="images",
        chance=1 / 7 if is_share else None,
        is_share=is_share,
    )


def whole(source: Squares, model: CLIP | None = None) -> Evaluation:
    """Every part that an evaluation can have."""
    labels = torch.arange(70) % 7
    logits = torch.nn.functional.one_hot(labels, 7) * 3.0 + 2 * torch.randn(70, 7)
    predictions = Predictions(
        class_names=CLASSES,
        keys=tuple(f"squares:{i}" for i in range(70)),
        rows=torch.arange(70),
        labels=labels,
        logits=logits,
    )
    scores = tuple(TemplateScore(template=f"{t} {{}}", top1=measure("top1", 0.5)) for t in ("a photo", HOSTILE))
    prompts = PromptResult(templates=scores, ensemble=measure("top1", 0.6))
    classification = classification_of(predictions, templates=("a {}",), logit_scale=100, prompts=prompts, resamples=50)
    ranks = 1.0 + torch.arange(4).double()
    direction = Direction(
        ranks=ranks,
        best=torch.arange(4).repeat(4, 1),
        measures=(measure("recall@1", 0.25), measure("recall@10", 1.0), measure("median_rank", 2.5, is_share=False)),
        values={},
        groups=torch.arange(4),
    )
    retrieval = RetrievalResult(
        keys=tuple(f"squares:{i}" for i in range(4)),
        rows=torch.arange(4),
        captions=(HOSTILE, "one", "two", "three"),
        pairs=torch.stack([torch.arange(4), torch.arange(4)], dim=1),
        image_to_text=direction,
        text_to_image=direction,
    )
    sweep = (SweepPoint(l2=0.1, accuracy=0.5), SweepPoint(l2=1.0, accuracy=0.7), SweepPoint(l2=10.0, accuracy=0.6))
    return Evaluation(
        model="pocket",
        runtime=RUNTIME,
        data=source.name,
        train_data="more squares",
        task="auto",
        images=70,
        seed=0,
        resamples=50,
        seconds=1.0,
        failures=(FailedItem(key=HOSTILE, row=9, reason="cannot be read"),),
        classification=classification,
        retrieval=retrieval,
        linear_probe=LinearProbeResult(
            classification=dataclasses.replace(classification, prompts=None, calibration=None),
            l2=1.0,
            sweep=sweep,
            train_images=100,
            validation_images=20,
        ),
        few_shot=FewShotResult(
            points=tuple(
                FewShotPoint(shots=n, accuracies=(0.3, 0.4), top1=measure("top1", 0.3 + n / 20)) for n in (1, 2, 4)
            ),
            zero_shot=measure("top1", 0.6),
            l2=1.0,
        ),
        comparison=Comparison(other="other", other_runtime=OTHER_RUNTIME, measures=(measure("top1", 0.1),)),
        probe=None if model is None else run(model, Preprocess(size=32), count=4, examples=2),
    )


class Reader(html.parser.HTMLParser):
    """Tags, addresses and visible text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def source(tmp_path: Path) -> Squares:
    return Squares(tmp_path)


def test_a_page_with_everything(source: Squares, tiny_vit: CLIP, tmp_path: Path) -> None:
    result = whole(source, tiny_vit)
    report.write(result, tmp_path / "page.html", source=source)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    read = Reader(page)
    assert "script" not in read.tags
    assert all(address.startswith(("data:image/", "#")) for address in read.addresses)
    assert read.text.count(HOSTILE) > 5  # shown, as text
    top1 = result.classification.measures[0]
    assert f"{100 * top1.value:.1f} %" in read.text
    assert f"{100 * top1.low:.1f} % – {100 * top1.high:.1f} %" in read.text
    for heading in (
        *("What it cannot do", "Zero-shot classification", "Linear probe", "A few pictures of each class", "Retrieval"),
        *("Classes found least", "Surest mistakes", "What the wording does", "Against other"),
        *("Each class, the worst first", "Records that could not be used", "How far its probabilities can be trusted"),
    ):
        assert heading in read.text, heading
    text = re.sub(r"\s+", " ", read.text)
    for verdict in result.probe.verdicts:
        assert verdict in text
    assert "Model pocket (bf16 by torch on cpu), data" in text
    assert "pocket (bf16 by torch on cpu) less other (int8 by openvino on cpu), on the same pictures" in text
    assert read.tags.count("svg") >= 4
    assert "no picture" in read.text  # of the one that is gone
    assert len(source.reads) == len(set(source.reads))


def test_the_page_is_the_same_again(source: Squares) -> None:
    result = whole(source)
    assert report.report_page(result, source=source) == report.report_page(result, source=source)


def test_without_a_source_there_are_no_pictures(source: Squares) -> None:
    page = report.report_page(whole(source))
    assert "data:image/jpeg" not in page
    assert "no picture" in page


def test_mistakes_are_shown_the_surest_first(source: Squares) -> None:
    result = whole(source).classification
    assert result is not None
    wrong = report._mistakes(result)
    sureness = [float(result.predictions.probabilities[i].max()) for i in wrong]
    assert sureness == sorted(sureness, reverse=True)
    assert len(wrong) == int(result.confusion.sum() - result.confusion.trace())
    rows = report._classes(result)
    assert [row["recall"] for row in rows] == sorted(row["recall"] for row in rows)
    own, other, times, _ = report._confusions(result)[0]
    assert int(result.confusion[CLASSES.index(own), CLASSES.index(other)]) == times


def test_nothing_but_a_probe(tiny_vit: CLIP) -> None:
    found = run(tiny_vit, Preprocess(size=32), count=2, kinds=["colour"])
    result = Evaluation(
        model="m", runtime=RUNTIME, data="", task="probe", images=0, seed=0, resamples=9, seconds=0.0, probe=found
    )
    text = Reader(report.report_page(result)).text
    assert "m: generated probes" in text
    assert "Zero-shot classification" not in text
    assert "Winoground" in text


def test_a_perfect_model_has_no_mistakes(source: Squares) -> None:
    result = whole(source)
    labels = torch.arange(70) % 7
    perfect = dataclasses.replace(
        result.classification.predictions, logits=torch.nn.functional.one_hot(labels, 7) * 9.0, labels=labels
    )
    page = report.report_page(
        dataclasses.replace(result, classification=classification_of(perfect, resamples=50), linear_probe=None),
        source=source,
    )
    assert "Classes found least" not in page
    assert "Surest mistakes" not in page


def test_of_many_classes_the_most_confused_are_drawn() -> None:
    confusion = torch.eye(100, dtype=torch.int64) * 5
    confusion[40, 7] = 9
    confusion[3, 90] = 4
    assert most_confused(confusion, 4) == [3, 7, 40, 90]
    assert most_confused(confusion, 9) == [3, 7, 40, 90]  # no others are
    assert most_confused(confusion[:4, :4], 4) == [0, 1, 2, 3]
    assert most_confused(torch.eye(9, dtype=torch.int64), 4) == [0, 1, 2, 3]
    figure = confusion_figure(confusion, [f"class {i}" for i in range(100)], limit=4)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 3", "class 7", "class 40", "class 90"]
    assert axes.get_xticklabels()[-1].get_text() == "any other"


def test_without_matplotlib_the_extra_is_named(source: Squares, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"everyclip\[plots\]"):
        report.report_page(whole(source))


def test_a_folder_that_is_not_there(source: Squares, tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="cannot be written"):
        report.write(whole(source), tmp_path / "gone" / "page.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to see that the page fits a phone")
def test_a_browser_shows_it_on_a_phone(source: Squares, tmp_path: Path) -> None:
    report.write(whole(source), tmp_path / "page.html", source=source)
    shot = tmp_path / "shot.png"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", "--window-size=390,1200"]
    subprocess.run([*command, (tmp_path / "page.html").as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[:2] == (1200, 390)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # text and cards, not an empty page
    assert (pixels[:, -8:] == pixels[0, -1]).all()  # the margin is free: nothing runs out at the right
