from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clip.errors import ConfigError, ImageError
from clip.images import ImageSource
from clip.intervals import wilson
from clip.moderation.attacks import ATTACKS, Attack
from clip.moderation.red_team import RedTeamReport, Share, chosen_attacks, red_team
from clip.moderation.verdict import Verdict
from clip.moderation.views import Views, views_of


def _picture(colour: str, side: int = 96) -> bytes:
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).ellipse((8, 8, side - 8, side - 8), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class RedSeeker:
    """Flags what has a view of which a fifth is pure red; knows no more than it is shown."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self.seen = 0

    def moderate(self, sources: Iterable[ImageSource], *, batch_size: int = 32) -> Iterator[Verdict]:
        for source in sources:
            self.seen += 1
            about = {"path": str(source)[:20], "findings": (), "policy": "p", "model": "m"}
            try:
                views = views_of(source, self.views).views
            except ImageError as error:
                yield Verdict(action="flag", error=str(error), **about)  # type: ignore[arg-type]
                continue
            reds = [
                np.mean((view.pixels[..., 0] > 200) & (view.pixels[..., 1:].max(axis=2) < 60)) > 0.2 for view in views
            ]
            yield Verdict(action="block" if any(reds) else "allow", **about)  # type: ignore[arg-type]


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    found = []
    for number, colour in enumerate(["red", "red", "red", "blue", "green"]):
        path = tmp_path / f"{colour} {number}.png"
        path.write_bytes(_picture(colour))
        found.append(str(path))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return [*found, str(tmp_path / "broken.png")]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=lambda attack: attack.name)
def test_each_attack_makes_a_readable_file_that_chance_decides(attack: Attack) -> None:
    picture = Image.open(io.BytesIO(_picture("red"))).convert("RGBA")
    before = picture.tobytes()
    one, same = (attack.apply(picture, random.Random(3)) for _ in range(2))
    assert one == same and picture.tobytes() == before
    assert views_of(one, Views.fast).views
    for size in ((1, 1), (3, 40), (60, 7)):
        assert views_of(attack.apply(picture.resize(size), random.Random(0)), Views.fast).views


@pytest.mark.parametrize(
    "name",
    [
        *(
            "small, a half",
            "in a corner",
            "framed",
            "elongated",
            "stretched",
            "upside down",
            "mirrored",
            "half covered",
        ),
        *("under transparency", "one frame of fifty", "second page", "not the default", "appended", "as thumbnail"),
        *("turned by EXIF", "turned by 90°", "captioned"),
    ],
)
def test_what_the_views_are_for_is_caught(name: str) -> None:
    attacked = ATTACKS[name].apply(Image.open(io.BytesIO(_picture("red"))).convert("RGBA"), random.Random(1))
    (verdict,) = RedSeeker(Views.standard).moderate([attacked])
    assert verdict.action == "block"


def test_without_views_the_same_files_pass() -> None:
    """The attacks hide something: the plain picture alone does not show it."""
    plain = Views(name="plain", max_views=1)
    passing = 0
    names = ["in a corner", "under transparency", "one frame of fifty", "second page", "appended", "as thumbnail"]
    for name in names:
        attacked = ATTACKS[name].apply(Image.open(io.BytesIO(_picture("red"))).convert("RGBA"), random.Random(1))
        (verdict,) = RedSeeker(plain).moderate([attacked])
        passing += verdict.action == "allow"
    assert passing == len(names)


def test_the_report_counts_bypasses_and_false_alarms(paths: list[str]) -> None:
    chosen = chosen_attacks(["grey", "mirrored", "file"])
    seeker = RedSeeker(Views.fast)
    report = red_team(seeker, paths, attacks=chosen, seed=4)
    assert (report.caught, report.allowed, report.unreadable, report.seed) == (3, 2, 1, 4)
    assert seeker.seen == 6 + len(chosen) * 5
    by_name = {result.attack.name: result for result in report.results}
    assert (by_name["grey"].bypassed, by_name["grey"].alarms) == (Share(3, 3), Share(0, 2))
    assert (by_name["mirrored"].bypassed, by_name["mirrored"].examples) == (Share(0, 3), ())
    assert set(by_name["grey"].examples) == set(paths[:3])
    assert by_name["one frame of fifty"].bypassed == Share(0, 3)
    assert report.bypassed.n == 3 * len(chosen)


def test_an_attack_that_makes_innocent_pictures_look_guilty_shows_as_false_alarms(paths: list[str]) -> None:
    paint = Attack("painted red", "colour", "all of it", lambda picture, chance: _picture("red"))
    (result,) = red_team(RedSeeker(Views.fast), paths, attacks={"painted red": paint}).results
    assert (result.alarms, result.bypassed) == (Share(2, 2), Share(0, 3))


def test_shares_have_wilsons_intervals() -> None:
    assert Share(3, 12).interval == tuple(wilson(0.25, 12))
    assert Share(0, 0).interval == (0.0, 1.0) and str(Share(0, 0)) == "-"
    assert str(Share(3, 3)).startswith("100% (")
    assert Share(0, 0).to_dict()["share"] is None and Share(1, 4).to_dict()["share"] == 0.25


def test_a_report_is_a_table_and_json(paths: list[str]) -> None:
    import json

    report = red_team(RedSeeker(Views.fast), paths, attacks=chosen_attacks(["mirrored", "grey"]))
    lines = report.table().splitlines()
    assert lines[1].startswith("grey") and lines[2].startswith("mirrored")  # what gets through most comes first
    assert "3 pictures that are caught unattacked, 2 that are allowed, 1 unreadable" in lines[-1]
    value = json.loads(json.dumps(report.to_dict()))
    assert value["caught"] == 3 and value["attacks"][0]["bypassed"]["n"] == 3
    assert value["attacks"][0]["attack"] in ATTACKS


def test_the_same_seed_gives_the_same_files(paths: list[str]) -> None:
    class Recorder(RedSeeker):
        def moderate(self, sources: Iterable[ImageSource], *, batch_size: int = 32) -> Iterator[Verdict]:
            kept = list(sources)
            files.append(kept)
            yield from super().moderate(kept, batch_size=batch_size)

    reports: list[RedTeamReport] = []
    recorded = []
    for seed in (0, 0, 1):
        files: list[list[ImageSource]] = []
        attacks = chosen_attacks(["small, a third", "noisy"])
        reports.append(red_team(Recorder(Views.fast), paths, attacks=attacks, seed=seed))
        recorded.append(files)
    assert recorded[0] == recorded[1] != recorded[2]
    assert reports[0] == reports[1]


def test_a_limit_draws_from_the_pictures(paths: list[str]) -> None:
    (result,) = red_team(RedSeeker(Views.fast), paths, attacks=chosen_attacks(["grey"]), limit=2).results
    assert (result.bypassed, result.alarms) == (Share(2, 2), Share(0, 2))


def test_wrong_wishes_are_refused(paths: list[str]) -> None:
    with pytest.raises(ConfigError, match="mirrored"):
        chosen_attacks(["mirored"])
    with pytest.raises(ConfigError, match="limit is 0"):
        red_team(RedSeeker(Views.fast), paths, limit=0)
    with pytest.raises(ConfigError, match="none is flagged or blocked"):
        red_team(RedSeeker(Views.fast), paths[3:])
    assert list(chosen_attacks(["writing"])) == ["captioned", "written over", "special words"]
