from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip.errors import ClipError, ConfigError, DataError
from clip.moderation.fit_report import fit_text, statement, verdict_on_target
from clip.moderation.fitted import CategoryFit, Claim, Estimate, Figures, Fitted, HeadTrial

FIGURES = Figures(
    pictures=212, yes=98, hits=82, right=78, f1=0.87, calibration_error=0.03,
    precision=Estimate(value=78 / 82, low=0.9108, high=0.98), recall=Estimate(value=0.8, low=0.719, high=0.87),
    average_precision=Estimate(value=0.93, low=0.9, high=0.96),
)  # fmt: skip
CLAIM = Claim(
    measure="precision",
    target=0.95,
    level=0.95,
    bound=0.89199,
    trials=82,
    successes=78,
    is_supported=False,
    needed=4321,
)
HEAD = CategoryFit(
    name="weapons", method="head", reason="because", yes=196, no=228, slope=1 / 3, intercept=-0.1,
    weights=np.array([0.1, -1e-30, 3e8], np.float32), threshold=0.7 + 0.1, origin="chosen",
    figures=FIGURES, before=FIGURES, contrast=FIGURES, claim=CLAIM,
    trial=HeadTrial(penalty=1.0, gain=0.1, gain_bound=0.01, is_used=True),
    scores=(0.9, 0.1), belongs=(True, False),
)  # fmt: skip
NONE = CategoryFit(name="alcohol", method="policy", reason="few", yes=3, no=400)


def fitted(**changes: Any) -> Fitted:
    values: dict[str, Any] = {
        "policy": "p" * 64, "policy_name": "goods", "model": "m" * 64, "views": "standard", "seed": 0,
        "date": "2026-01-01", "version": "0.1.0",
        "pictures": 424, "unreadable": 1, "duplicates": 7, "categories": (HEAD, NONE),
    }  # fmt: skip
    return Fitted(**{**values, **changes})


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = fitted()
    saved.save(tmp_path / "a.json")
    opened = Fitted.open(tmp_path / "a.json")
    assert opened.to_dict() == saved.to_dict() and opened.fingerprint == saved.fingerprint
    weights = opened.category("weapons").weights
    assert weights is not None and weights.dtype == np.float32 and weights.tolist() == HEAD.weights.tolist()  # type: ignore[union-attr]
    assert opened.category("weapons").threshold == 0.7 + 0.1  # to the last digit
    assert opened.category("weapons").claim == CLAIM
    opened.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]
    with pytest.raises(ClipError, match="cannot be written"):
        saved.save(tmp_path / "missing" / "a.json")


def test_scores_and_thresholds() -> None:
    one = fitted()
    embedding = np.array([0.6, 0.8, 0.0], np.float32)
    logit = 2.0 / 3 - 0.1 + float(np.float32(0.6)) * float(np.float32(0.1))
    assert one.score("weapons", 2.0, embedding) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-12)
    assert one.threshold("weapons") == (0.7 + 0.1, "fitted on 424 pictures")
    assert one.score("alcohol", 2.0, embedding) is None and one.threshold("alcohol") is None
    stated = dataclasses.replace(HEAD, origin="stated")
    assert fitted(categories=(stated,)).threshold("weapons") == (0.7 + 0.1, "stated")
    with pytest.raises(ConfigError, match="'weapon' is no category of this fit; its categories are weapons, alcohol"):
        one.score("weapon", 2.0, embedding)
    with pytest.raises(ConfigError, match="embeddings are 2 wide, and the head was fitted for 3"):
        one.score("weapons", 2.0, embedding[:2])
    with pytest.raises(ConfigError, match="nothing was fitted"):
        NONE.scores_of(np.zeros(1), embedding[None])


def test_the_fingerprint_is_of_what_decides() -> None:
    one = fitted()
    assert fitted(date="2027-01-01", seed=3, pictures=1).fingerprint == one.fingerprint
    for changed in (
        fitted(policy="q" * 64),
        fitted(model="n" * 64),
        fitted(views="fast"),
        fitted(categories=(dataclasses.replace(HEAD, threshold=0.81), NONE)),
        fitted(categories=(dataclasses.replace(HEAD, weights=np.zeros(3, np.float32)), NONE)),
    ):
        assert changed.fingerprint != one.fingerprint


def test_it_is_refused_for_anything_else() -> None:
    own = {"policy": "p" * 64, "model": "m" * 64, "views": "standard"}
    fitted().check(**own)
    for what, other, message in (
        ("policy", "q" * 64, "was fitted for policy pppppppppppp \\(goods\\), and this is qqqqqqqqqqqq"),
        ("model", "n" * 64, "for model mmmmmmmmmmmm"),
        ("views", "fast", "for views standard .* this is fast; use views standard, or fit again"),
    ):
        with pytest.raises(ConfigError, match=message):
            fitted().check(**{**own, what: other})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format",), 2, "format: is 2; expected: one of 1"),
        (("seed",), "0", 'seed: is "0"; expected: an integer'),
        (("seed",), True, "seed: is true; expected: an integer"),
        (("polisy",), "x", "polisy: is unknown; known are policy, policy_name"),
        (("policy",), ..., "policy: is missing"),
        (("categories",), {}, "categories: is {}; expected: a list"),
        (("categories", 0), 3, r"categories\[0\]: is 3; expected: an object"),
        (("categories", 0, "slope"), "1", r"categories\[0\].slope: is \"1\"; expected: a finite number"),
        (("categories", 0, "slope"), 10**400, r"categories\[0\].slope: is 1000.*… *; expected: a finite number"),
        (("categories", 0, "method"), "magic", r"method: is \"magic\"; expected: one of 'policy', 'contrast', 'head'"),
        (("categories", 0, "method"), "contrast", "weapons: only a head has weights"),
        (("categories", 0, "threshold"), None, "weapons: method 'head' does not go with what is given"),
        (("categories", 0, "threshold"), 1.5, "weapons: the threshold is 1.5; 0 to 1 is expected"),
        (("categories", 0, "weights"), "AAA", r"weights: is \"AAA\"; expected: numbers of 4 bytes in base 64"),
        (("categories", 0, "weights"), "AAAA", "expected: numbers of 4 bytes in base 64"),
        (("categories", 0, "weights"), "", "expected: at least one finite number"),
        (("categories", 0, "weights"), "AADAfw==", "expected: at least one finite number"),  # a NaN
        (("categories", 0, "scores"), [0.5], "weapons: 1 scores and 2 labels"),
        (("categories", 0, "figures", "precision", "low"), None, "figures.precision.low: is null; expected: a finite"),
        (("categories", 0, "claim", "is_supported"), 1, "claim.is_supported: is 1; expected: true or false"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(
    tmp_path: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    contents = fitted().to_dict()
    inside = contents
    for key in place[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(contents))
    with pytest.raises(DataError, match=message) as caught:
        Fitted.open(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": NaN}', '{"seed": 1, "seed": 2}', "\xff", "[" * 100_000])
def test_what_is_no_such_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fit.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"fit\.json: "):
        Fitted.open(path)
    with pytest.raises(DataError, match="cannot be read"):
        Fitted.open(tmp_path / "missing.json")


def test_what_is_said_of_it() -> None:
    assert statement(HEAD) == (
        "at threshold 0.80: precision 0.95 (0.910–0.98), recall 0.80 (0.71–0.87), on 212 held-out pictures, 98 of them "
        "weapons"
    )
    assert statement(NONE) == "not fitted: 3 labelled pictures are alcohol and 400 are not; few"
    assert verdict_on_target(CLAIM) == (
        "cannot claim precision 0.95: precision is at least 0.89 (95% sure: 78 of 82 hits are right); if it really is "
        "0.95, about 4 400 labelled pictures like these would support it"
    )
    supported = dataclasses.replace(CLAIM, target=0.85, is_supported=True, needed=None)
    assert verdict_on_target(supported).startswith("meets precision 0.85: precision is at least 0.89 (95% sure")
    assert "no number of labels" in verdict_on_target(dataclasses.replace(CLAIM, target=0.96, needed=None))
    assert verdict_on_target(dataclasses.replace(CLAIM, trials=0, successes=0, bound=0.0, needed=None)).endswith(
        "is a hit"
    )
    text = fit_text(fitted())
    for words in (
        "424 pictures read, 1 unreadable, 7 passed over",
        "weapons   policy",
        "fitted head",
        "not fitted: 3",
        "cannot cl",
    ):
        assert words in text
    assert "no category was fitted" in fit_text(fitted(categories=(NONE,)))
