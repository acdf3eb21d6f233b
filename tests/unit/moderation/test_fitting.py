from __future__ import annotations

import csv
import dataclasses
import logging
import math
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip.errors import ClipError, ConfigError, DataError, ImageError
from clip.images import read_pixels
from clip.moderation.fit_plot import fit_figure, save_fit_figure
from clip.moderation.fitted import Fitted
from clip.moderation.fitting import fit, fit_measured, judge
from clip.moderation.labels import Labels, read_labels
from clip.moderation.measuring import measure
from clip.moderation.moderator import Evidence, Moderator
from clip.moderation.policy import Category, Policy, Target
from clip.moderation.scores import Threshold
from clip.moderation.views import Views

POLICY = Policy(
    name="colours",
    categories=(
        Category(name="red", prompts=("red",), target=Target(measure="precision", value=0.8)),
        Category(name="blue", prompts=("blue",), threshold=0.5),
        Category(name="unseen", prompts=("unseen",), threshold=0.25),
    ),
)


@dataclasses.dataclass
class Seen:
    contrasts: np.ndarray
    embedding: np.ndarray


class Eye:
    """A moderator with a known answer: how red and how blue a picture is, on average."""

    policy = POLICY
    model_fingerprint = "m" * 64

    class views:  # noqa: N801  # a value, as far as anybody can tell
        name = "standard"

    class scorer:  # noqa: N801
        @staticmethod
        def score(evidence: float, /) -> float:
            return 1 / (1 + math.exp(-evidence))

        @staticmethod
        def threshold(category: Category, /) -> Threshold:
            return Threshold(0.9, "by calibration")

    def evidence(
        self, sources: Iterable[Any], *, batch_size: int = 32, workers: int | None = None
    ) -> Iterator[tuple[Any, Seen | ClipError]]:
        for source in sources:
            try:
                pixels = read_pixels(source)
            except ImageError as error:
                yield source, error
                continue
            red, green, blue = pixels.reshape(-1, 3).mean(axis=0) / 255
            embedding = np.array([red, green, blue, 1.0])
            contrasts = np.array([10 * (red - 0.5), 10 * (blue - 0.5), 0.0])
            yield source, Seen(contrasts, (embedding / np.linalg.norm(embedding)).astype(np.float32))


def picture(path: Path, seed: int, *, red: bool, size: int = 24) -> None:
    """A pattern that no other seed has, brighter in red or not; one in ten is the wrong way round."""
    generator = np.random.default_rng(seed)
    pixels = np.kron(generator.integers(0, 160, (6, 6, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    pixels[..., 0] += np.uint8(90 if red != (generator.random() < 0.1) else 0)
    Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 pictures that are red and 140 that are not, and labels.csv."""
    folder = tmp_path_factory.mktemp("fitting")
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "category", "label"))
        for seed in range(240):
            picture(folder / f"{seed}.png", seed, red=seed < 100)
            rows.writerow((f"{seed}.png", "red", "yes" if seed < 100 else "no"))
            if seed < 10:
                rows.writerow((f"{seed}.png", "blue", "no"))
    return folder


def labels_of(folder: Path) -> Labels:
    return read_labels(folder / "labels.csv", POLICY)


def without_date(fitted: Fitted) -> dict[str, Any]:
    return {**fitted.to_dict(), "date": ""}


def test_from_labels_to_a_file_and_back(folder: Path, tmp_path: Path) -> None:
    told: list[int] = []
    fitted = fit(Eye(), labels_of(folder), on_progress=told.append)
    assert sum(told) == 240
    assert (fitted.pictures, fitted.unreadable, fitted.policy, fitted.views) == (240, 0, POLICY.fingerprint, "standard")
    red, blue, unseen = fitted.categories
    assert (red.yes + red.no, blue.yes, blue.no, unseen.yes, unseen.no) == (240 - fitted.duplicates, 0, 10, 0, 0)
    assert blue.method == unseen.method == "policy" and fitted.threshold("blue") is None
    assert red.figures is not None and red.before is not None and red.figures.precision is not None
    assert red.figures.pictures == red.before.pictures == pytest.approx(120, abs=2)
    assert red.figures.precision.value > 0.8 and red.figures.f1 > red.before.f1
    fitted.save(tmp_path / "red.fit.json")
    opened = Fitted.open(tmp_path / "red.fit.json")
    assert opened.to_dict() == fitted.to_dict()
    _, seen = next(Eye().evidence([folder / "3.png"]))
    assert isinstance(seen, Seen)
    score = opened.score("red", float(seen.contrasts[0]), seen.embedding)
    assert score is not None and 0 < score < 1


def test_the_order_of_rows_makes_no_difference_and_the_seed_does(folder: Path, tmp_path: Path) -> None:
    header, *rows = (folder / "labels.csv").read_text().splitlines()
    random.Random(0).shuffle(rows)
    shuffled = tmp_path / "labels.csv"
    shuffled.write_text("\n".join([header, *(f"{folder}/{row}" for row in rows)]))
    expected = without_date(fit(Eye(), labels_of(folder), seed=1))
    assert without_date(fit(Eye(), read_labels(shuffled, POLICY), seed=1)) == expected
    assert without_date(fit(Eye(), labels_of(folder), seed=2)) != expected


def test_copies_count_once_and_stay_on_one_side(folder: Path, tmp_path: Path) -> None:
    expected = fit(Eye(), labels_of(folder))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "category", "label"))
        for seed in range(240):
            label = "yes" if seed < 100 else "no"
            shutil.copy(folder / f"{seed}.png", tmp_path / f"{seed}.png")
            picture(tmp_path / f"{seed} larger.png", seed, red=seed < 100, size=96)
            Image.open(folder / f"{seed}.png").save(tmp_path / f"{seed}.bmp")  # the same pixels, other bytes
            for path in (tmp_path / f"{seed}.png", folder / f"{seed}.png", f"{seed}.bmp", f"{seed} larger.png"):
                rows.writerow((path, "red", label))
    fitted = fit(Eye(), labels_of(tmp_path))
    assert fitted.pictures == 4 * 240
    # A few of the larger ones are not recognised: their patterns have steps of just the size that counts as none.
    assert 3 * 240 - 5 <= fitted.duplicates - expected.duplicates <= 3 * 240
    assert fitted.categories[0].yes + fitted.categories[0].no == 4 * 240 - fitted.duplicates


def test_copies_with_other_labels_are_told_of_and_never_on_both_sides(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (folder / "labels.csv").read_text().replace("\n", f"\n{folder}/").removesuffix(f"{folder}/")
    Image.open(folder / "5.png").save(tmp_path / "copy.bmp")
    (tmp_path / "labels.csv").write_text(f"{text}copy.bmp,red,no\n")
    with caplog.at_level(logging.WARNING):
        measured = measure(Eye(), labels_of(tmp_path))
    assert (
        "5.png and" in caplog.text
        and "copy.bmp look nearly the same, and only the first is labelled red" in caplog.text
    )
    groups = measured.sample("red").groups
    assert len(groups) - len(set(groups.tolist())) == 1  # both are there, and in one group


def test_the_same_file_with_two_labels_is_an_error_that_names_both_lines(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "0.png", tmp_path / "again.png")
    (tmp_path / "labels.csv").write_text(f"path,category,label\n{folder}/0.png,red,yes\nagain.png,red,no\n")
    with pytest.raises(DataError, match=r"lines 2 \(.*0\.png\) and 3 \(.*again\.png\) for red; correct one"):
        fit(Eye(), labels_of(tmp_path))
    (tmp_path / "labels.csv").write_text(f"path,category,label\n{folder}/0.png,red,yes\nagain.png,blue,no\n")
    assert measure(Eye(), labels_of(tmp_path)).sample("blue").belongs.tolist() == [False]


def test_unreadable_pictures_are_counted_up_to_a_limit(folder: Path, tmp_path: Path) -> None:
    text = (folder / "labels.csv").read_text().replace("\n", f"\n{folder}/").removesuffix(f"{folder}/")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "labels.csv").write_text(f"{text}broken.png,red,no\nmissing.png,red,yes\n")
    told: list[str] = []
    fitted = fit(Eye(), labels_of(tmp_path), on_failure=told.append)
    assert (fitted.pictures, fitted.unreadable) == (240, 2)
    assert "broken.png" in told[0] and "missing.png" in told[1]
    with pytest.raises(DataError, match="could not be read"):
        fit(Eye(), labels_of(tmp_path), max_failures=0)
    (tmp_path / "labels.csv").write_text("path,category,label\nbroken.png,red,no\n")
    with pytest.raises(DataError, match="none of its 1 pictures can be read"):
        fit(Eye(), labels_of(tmp_path))


def test_other_pictures_judge_a_fit(folder: Path, tmp_path: Path) -> None:
    fitted = fit(Eye(), labels_of(folder))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "categories"))
        for seed in range(1000, 1060):
            picture(tmp_path / f"{seed}.png", seed, red=seed < 1030)
            rows.writerow((f"{seed}.png", "red" if seed < 1030 else ""))
    measured = measure(Eye(), labels_of(tmp_path))
    before, after = judge(Eye(), measured), judge(Eye(), measured, fitted=fitted)
    assert list(before) == list(after) == ["red"]  # of the others none belongs
    assert after["red"].f1 > before["red"].f1 and after["red"].yes == 30
    other = Eye()
    other.model_fingerprint = "n" * 64
    with pytest.raises(ConfigError, match="was fitted for model"):
        judge(other, measured, fitted=fitted)


def test_heads_is_one_of_three(folder: Path) -> None:
    with pytest.raises(ConfigError, match="heads is 'sometimes'; it must be True, False or 'auto'"):
        fit(Eye(), labels_of(folder), heads="sometimes")  # type: ignore[arg-type]


def test_plots(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured = measure(Eye(), labels_of(folder))
    fitted = fit_measured(Eye(), measured)
    save_fit_figure(fitted, tmp_path / "fit.svg")
    save_fit_figure(fitted, tmp_path / "fit.PNG")
    svg = (tmp_path / "fit.svg").read_text()
    assert svg.startswith("<?xml") and 'xmlns="http://www.w3.org/2000/svg"' in svg
    red = fitted.categories[0]
    assert red.figures is not None
    assert f"red: {red.figures.yes} of {red.figures.pictures} held-out pictures" in svg
    with Image.open(tmp_path / "fit.PNG") as image:
        assert image.format == "PNG" and image.width > 1000
    curve, histogram, _ = fit_figure(fitted).axes
    assert curve.get_xlabel() == "recall"
    bars = [bar.get_height() for bar in histogram.patches]
    assert sum(height for height in bars if height > 0) == red.figures.yes
    with pytest.raises(ConfigError, match=r"ends in \.jpg; name it \.svg or \.png"):
        save_fit_figure(fitted, tmp_path / "fit.jpg")
    with pytest.raises(ConfigError, match="no category was fitted"):
        fit_figure(dataclasses.replace(fitted, categories=fitted.categories[1:]))


def test_a_moderator_decides_by_what_was_fitted(tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "golden/moderation"
    prompts = ("a beer mug", "a glass of wine", "a cocktail", "a sword", "a bomb", "a slot machine", "a syringe")
    target = Target(measure="precision", value=0.8)
    policy = Policy(name="goods", categories=(Category(name="restricted", prompts=prompts, target=target),))
    with (golden / "labels.csv").open(newline="") as file, (tmp_path / "labels.csv").open("w", newline="") as written:
        rows = csv.writer(written)
        rows.writerow(("path", "category", "label"))
        rows.writerows(
            (golden / row["path"], "restricted", "01"[row["categories"] != ""]) for row in csv.DictReader(file)
        )
    moderator = Moderator.open(policy, views=Views.fast)
    labels = read_labels(tmp_path / "labels.csv", policy)
    fitted = fit(moderator, labels)
    (restricted,) = fitted.categories
    assert restricted.figures is not None and restricted.before is not None and restricted.threshold is not None
    assert restricted.figures.f1 > restricted.before.f1

    paths = [picture.path for picture in labels.pictures[:12]]
    other = Moderator(
        policy,
        moderator.model,
        moderator.preprocess,
        model_fingerprint=moderator.model_fingerprint,
        fitted=fitted,
        views=Views.fast,
    )
    for verdict, (_, evidence) in zip(other.moderate(paths), moderator.evidence(paths), strict=True):
        (finding,) = verdict.findings
        assert isinstance(evidence, Evidence)
        assert (finding.threshold, finding.threshold_origin) == fitted.threshold("restricted")
        expected = fitted.score("restricted", float(evidence.contrasts[0]), evidence.embedding)
        assert finding.score == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="was fitted for views fast"):
        Moderator(
            policy,
            moderator.model,
            moderator.preprocess,
            model_fingerprint=moderator.model_fingerprint,
            fitted=fitted,
            views=Views.standard,
        )
