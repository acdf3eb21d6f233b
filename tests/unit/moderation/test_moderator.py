from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from clip.errors import ConfigError
from clip.moderation.moderator import Moderator
from clip.moderation.policy import Category, Exemption, Policy, Target
from clip.moderation.scores import Looks, Scorer
from clip.moderation.verdict import Finding, Verdict
from clip.moderation.views import Views, views_of

GUNS = Category(name="guns", prompts=("gun",), counter_prompts=("toy",), threshold=0.5, action="block", severity="high")
BEER = Category(name="beer", prompts=("beer",), threshold=0.5, action="flag")
POLICY = Policy(name="test", categories=(GUNS, BEER))

BROKEN = (200, 0, 200)

Draw = Callable[..., bytes]
Build = Callable[..., Moderator]


def only(moderator: Moderator, *sources: Any, **options: Any) -> Any:
    verdicts = list(moderator.moderate(sources, **options))
    return verdicts[0] if len(verdicts) == 1 else verdicts


def finding(verdict: Verdict, name: str) -> Finding:
    return next(found for found in verdict.findings if found.category == name)


# Verdicts -------------------------------------------------------------------------------------------------------------


def test_a_verdict_says_what_it_rests_on(moderator_of: Build, picture: Draw, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture("gun"))
    verdict = only(moderator_of(POLICY), str(path))
    assert verdict.path == str(path) and verdict.action == "block" and verdict.error is None
    assert verdict.policy == POLICY.fingerprint and verdict.model == "m" * 64
    assert verdict.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    rule = verdict.rule
    assert rule is not None and rule.category == "guns" and rule.severity == "high"
    assert (rule.prompt, rule.view, rule.threshold, rule.threshold_origin) == ("gun", "whole", 0.5, "stated")
    assert rule.score > 0.95 and rule.is_hit and rule.exemption is None and rule.reservation is None
    other = verdict.findings[1]
    assert (other.category, other.action, other.is_hit) == ("beer", "allow", False)


@pytest.mark.parametrize(
    ("things", "action", "rule"), [(["tree"], "allow", None), (["beer"], "flag", "beer"), (["gun"], "block", "guns")]
)
def test_the_strictest_finding_decides(
    moderator_of: Build, picture: Draw, things: list[str], action: str, rule: str | None
) -> None:
    verdict = only(moderator_of(POLICY), picture(*things))
    assert verdict.action == action and (verdict.rule.category if verdict.rule else None) == rule
    assert verdict.path == "<bytes>"


def test_findings_are_in_order_of_action_severity_and_margin(moderator_of: Build, picture: Draw) -> None:
    categories = [
        Category(name=name, prompts=(f"{thing} of {name}",), threshold=0.01, action=action, severity=severity)
        for name, thing, action, severity in (
            ("a", "gun", "flag", "low"),
            ("b", "gun", "flag", "critical"),
            ("c", "gun", "block", "low"),
            ("d", "beer", "block", "critical"),
        )
    ]
    verdicts = [
        only(moderator_of(Policy(name="p", categories=tuple(order))), picture("gun"))
        for order in (categories, categories[::-1])
    ]
    assert [found.category for found in verdicts[0].findings] == ["c", "b", "a", "d"]
    # Floating-point sums differ in their last digits with the shapes of the matrices.
    for one, other in zip(*(verdict.findings for verdict in verdicts), strict=True):
        assert dataclasses.replace(one, score=0) == dataclasses.replace(other, score=0)
        assert one.score == pytest.approx(other.score, rel=1e-5)


def test_thresholds_of_targets_say_so(moderator_of: Build, picture: Draw) -> None:
    policy = Policy(
        name="p",
        categories=(dataclasses.replace(GUNS, threshold=None, target=Target(measure="precision", value=0.9)),),
    )
    rule = only(moderator_of(policy), picture("gun")).rule
    assert (rule.threshold, rule.threshold_origin) == (0.9, "by calibration")


# Files that cannot be read --------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_a_verdict_of_its_own(moderator_of: Build, picture: Draw, tmp_path: Path) -> None:
    moderator = moderator_of(dataclasses.replace(POLICY, unreadable="block"))
    first, none, last = only(moderator, picture("beer"), tmp_path / "none.png", picture("gun"))
    assert (first.action, last.action) == ("flag", "block")
    assert none.path == os.fspath(tmp_path / "none.png") and none.findings == () and none.rule is None
    assert none.action == "block" and "no such file" in none.error and none.sha256 is None


def test_bytes_that_are_no_picture_have_a_digest(
    moderator_of: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, large = tmp_path / "broken.png", tmp_path / "large.png"
    broken.write_bytes(b"no picture")
    large.write_bytes(bytes(1000))
    monkeypatch.setattr("clip.moderation.views.MAX_BYTES", 999)
    verdicts = only(moderator_of(POLICY), broken, b"no picture", large, bytes(1000), tmp_path)
    assert all(verdict.error for verdict in verdicts)
    short, long = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (broken, large))
    assert [verdict.sha256 for verdict in verdicts] == [short, short, long, long, None]


def test_features_that_are_not_finite_are_an_error_and_no_hit(moderator_of: Build, picture: Draw) -> None:
    moderator = moderator_of(POLICY)
    verdicts = only(moderator, picture("gun"), picture(BROKEN), picture("tree"))
    assert [verdict.action for verdict in verdicts] == ["block", "flag", "allow"]
    assert verdicts[1].findings == () and "not finite" in verdicts[1].error
    assert verdicts[1].sha256 == hashlib.sha256(picture(BROKEN)).hexdigest()


def test_a_stream_of_thousands_of_bad_files_is_answered_as_it_comes(moderator_of: Build, picture: Draw) -> None:
    taken = 0

    def sources() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"no picture"

    verdicts = moderator_of(POLICY).moderate(sources(), batch_size=4, workers=1)
    assert all(next(verdicts).error for _ in range(50))
    assert taken < 50 + 4 * 4 + 8


# The stream -----------------------------------------------------------------------------------------------------------


def test_order_is_kept_and_batches_make_no_difference(moderator_of: Build, picture: Draw, model: Any) -> None:
    moderator = moderator_of(POLICY, views=Views.standard)
    things = [("gun",), ("tree", "beer"), ("gun", "beer", "toy"), (BROKEN,), ("toy", "gun")] * 4
    sources = [picture(*shown) for shown in things]
    sources[7] = b"no picture"
    together = only(moderator, *sources, batch_size=7, workers=3)
    alone = [only(moderator, source, batch_size=1, workers=1) for source in sources]
    assert together == alone
    model.batches.clear()
    only(moderator, *sources, batch_size=7)
    assert set(model.batches[:-1]) == {7}  # views of several pictures at a time


def test_only_so_much_is_read_ahead(moderator_of: Build, picture: Draw) -> None:
    taken = 0

    def sources() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield picture("gun")

    verdicts = moderator_of(POLICY).moderate(sources(), batch_size=4, workers=2)
    next(verdicts)
    assert taken <= 4 * 4 + 2 * 2 + 4
    verdicts.close()  # type: ignore[attr-defined]
    assert taken < 40


def test_an_empty_stream_is_done(moderator_of: Build) -> None:
    assert only(moderator_of(POLICY)) == []


def test_evidence_is_what_the_scores_are_made_of(moderator_of: Build, picture: Draw) -> None:
    moderator = moderator_of(POLICY)
    sources = [picture("gun", "tree"), b"no picture", picture("beer")]
    found = list(moderator.evidence(sources))
    assert [source for source, _ in found] == sources
    assert "not a picture" in str(found[1][1])
    for (_, known), verdict in zip(found[::2], moderator.moderate(sources[::2]), strict=True):
        assert np.linalg.norm(known.embedding) == pytest.approx(1, abs=1e-5)  # type: ignore[union-attr]
        for contrast, category in zip(known.contrasts, POLICY.categories, strict=True):  # type: ignore[union-attr]
            assert moderator.scorer.score(contrast) == finding(verdict, category.name).score


# Several views --------------------------------------------------------------------------------------------------------


def gif(*frames: bytes) -> bytes:
    pictures = [Image.open(io.BytesIO(frame)) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return file.getvalue()


def test_any_frame_counts(moderator_of: Build, picture: Draw) -> None:
    moving = gif(picture("tree"), picture("toy"), picture("gun"), picture("tree"))
    verdict = only(moderator_of(POLICY, views=Views.standard), moving)
    assert verdict.action == "block" and "frame 2" in verdict.rule.view and verdict.frames == 4


def scene(thing: tuple[int, int, int], side: int = 256) -> bytes:
    """Something in a corner of a large picture of trees."""
    pixels = np.full((side, side, 3), (200, 200, 0), np.uint8)
    pixels[side // 2 :, side // 2 :] = thing
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_tiles_find_what_the_whole_does_not_show(moderator_of: Build) -> None:
    small = scene((200, 0, 0))
    fast, standard = (only(moderator_of(POLICY, views=views), small) for views in (Views.fast, Views.standard))
    assert finding(standard, "guns").score > finding(fast, "guns").score
    assert finding(standard, "guns").view.startswith("tile 2,2")


def with_writing(base: tuple[int, int, int], ink: tuple[int, int, int], text: str = "SOMETHING WRITTEN") -> bytes:
    image = Image.new("RGB", (448, 200), base)
    ImageDraw.Draw(image).text((12, 70), text, ink, ImageFont.load_default(size=40))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@dataclasses.dataclass
class Painted:
    """A scorer to which the views say what they are told to."""

    scorer: Scorer
    evidence: dict[int, float]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def looks(self, embeddings: np.ndarray) -> Looks:
        found = self.scorer.looks(embeddings)
        rows = [[self.evidence.get(row, -9.0)] for row in range(len(embeddings))]
        return found._replace(evidence=np.array(rows))


def test_writing_can_neither_make_a_block_nor_prevent_one(moderator_of: Build) -> None:
    written = with_writing((200, 200, 0), (0, 0, 0))
    views = views_of(written, Views.standard).views
    bare_row = [view.kind for view in views].index("without-text")
    moderator = moderator_of(Policy(name="p", categories=(GUNS,)), views=Views.standard)
    plain = moderator.scorer
    for whole, bare, action, view, is_reserved in (
        (6.0, 6.5, "block", "without", False),
        (6.0, -6.0, "flag", "whole", True),
        (-6.0, 6.0, "block", "without", False),
        (-6.0, -6.0, "allow", "", False),
    ):
        moderator.scorer = Painted(plain, {0: whole, bare_row: bare})  # type: ignore[assignment]
        verdict = only(moderator, written)
        found = verdict.findings[0]
        assert verdict.action == action and view in found.view and found.is_hit == (action != "allow")
        assert (found.reservation is not None) == is_reserved
    tile = [view.kind for view in views].index("tile")
    moderator.scorer = Painted(plain, {tile: 12.0})  # type: ignore[assignment]  # stands beside the writing
    assert only(moderator, written).action == "block"


# Exemptions -----------------------------------------------------------------------------------------------------------


def exempt(*exemptions: Exemption, category: Category = GUNS) -> Policy:
    return Policy(name="p", categories=(dataclasses.replace(category, exemptions=exemptions), BEER))


def test_words_that_fit_better_make_it_milder(moderator_of: Build, picture: Draw) -> None:
    policy = exempt(Exemption(prompts=("museum",), action="flag"))
    policy = dataclasses.replace(
        policy, categories=(dataclasses.replace(policy.categories[0], threshold=0.05), *policy.categories[1:])
    )
    both, alone = only(moderator_of(policy), picture("gun", "museum", "museum"), picture("gun"))
    assert both.rule.is_hit and both.action == "flag" and both.rule.exemption == "looks like museum"
    assert alone.action == "block" and alone.rule.exemption is None


def test_paths_and_hashes_exempt_those_files_alone(moderator_of: Build, picture: Draw, tmp_path: Path) -> None:
    data = picture("gun")
    paths = [tmp_path / name for name in ("game-1.png", "photo.png")]
    for path in paths:
        path.write_bytes(data)
    by_path = moderator_of(exempt(Exemption(path="*/game-*.png")))
    assert [verdict.action for verdict in only(by_path, *map(str, paths))] == ["allow", "block"]
    assert only(by_path, str(paths[0])).rule.exemption == "path */game-*.png"
    by_hash = moderator_of(exempt(Exemption(sha256=hashlib.sha256(data).hexdigest(), action="flag")))
    assert [verdict.action for verdict in only(by_hash, data, picture("gun", side=65))] == ["flag", "block"]


def test_an_exemption_leaves_other_categories_alone(moderator_of: Build, picture: Draw) -> None:
    both = picture("gun", "beer")
    plain = only(moderator_of(POLICY), both)
    verdict = only(moderator_of(exempt(Exemption(sha256=hashlib.sha256(both).hexdigest()))), both)
    assert finding(plain, "guns").is_hit and finding(verdict, "guns").action == "allow"
    assert finding(verdict, "beer") == finding(plain, "beer")


def test_the_mildest_of_several_exemptions_holds(moderator_of: Build, picture: Draw) -> None:
    two = exempt(Exemption(path="<bytes>", action="flag"), Exemption(path="*", action="allow"))
    assert only(moderator_of(two), picture("gun")).action == "allow"


# What was fitted ------------------------------------------------------------------------------------------------------


class Learned:
    """What of ``Fitted`` is used."""

    fingerprint = "f" * 64

    def check(self, *, policy: str, model: str, views: str) -> None:
        if (policy, model, views) != (POLICY.fingerprint, "m" * 64, "fast"):
            raise ConfigError("was fitted for something else")

    def threshold(self, category: str) -> tuple[float, str] | None:
        return (0.9999, "fitted on 40 pictures") if category == "guns" else None

    def score(self, category: str, contrast: float, embedding: np.ndarray) -> float | None:
        return min(0.9 + contrast / 1000, 1.0) if category == "beer" else None


def test_fitted_thresholds_and_scores_take_the_place_of_calibrated_ones(moderator_of: Build, picture: Draw) -> None:
    verdict = only(moderator_of(POLICY, fitted=Learned()), picture("gun"))
    guns, beer = finding(verdict, "guns"), finding(verdict, "beer")
    assert (guns.threshold, guns.threshold_origin) == (0.9999, "fitted on 40 pictures")
    assert guns.score == finding(only(moderator_of(POLICY), picture("gun")), "guns").score
    assert 0.8 < beer.score < 0.9 and beer.threshold_origin == "stated" and beer.is_hit
    assert verdict.policy == POLICY.fingerprint + "+" + "f" * 64


def test_what_was_fitted_for_something_else_is_refused(moderator_of: Build) -> None:
    for options in ({"model_fingerprint": "x" * 64}, {"views": Views.standard}):
        with pytest.raises(ConfigError, match="fitted for something else"):
            moderator_of(POLICY, fitted=Learned(), **options)
    with pytest.raises(ConfigError, match="fitted for something else"):
        moderator_of(exempt(Exemption(path="x")), fitted=Learned())


# The bundled model ----------------------------------------------------------------------------------------------------


def test_pocket_and_a_packaged_policy() -> None:
    from clip import samples

    moderator = Moderator.open("restricted-goods", device="cpu", precision="fp32", views=Views.fast)
    assert [category.name for category in moderator.policy.categories][:2] == ["weapons", "alcohol"]
    verdicts = list(moderator.moderate([sample.image for sample in samples.pictures()]))
    assert [verdict.error for verdict in verdicts] == [None] * 36
    assert sum(verdict.action == "allow" for verdict in verdicts) >= 30  # none of them shows such goods
