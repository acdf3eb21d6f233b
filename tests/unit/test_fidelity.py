"""What another form of a model changed, on embeddings with a known answer."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from clip.errors import ShapeError
from clip.fidelity import Embeddings, compare

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.standard_normal((7, 16)).astype(np.float32)
TEXTS = GENERATOR.standard_normal((5, 16)).astype(np.float32)
REFERENCE = Embeddings(IMAGES, TEXTS)


def _turned(degrees: float) -> np.ndarray:
    """A unit vector of the plane."""
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], dtype=np.float32)


def test_a_form_is_itself_at_any_norm_and_precision() -> None:
    lengths = np.linspace(0.1, 40, 7)[:, None]
    found = compare(REFERENCE, Embeddings(IMAGES.astype(np.float64) * lengths, 3 * TEXTS))
    assert (found.images, found.texts) == (7, 5)
    for cosine in (found.image_cosine, found.image_centred_cosine, found.text_cosine, found.text_centred_cosine):
        assert cosine == pytest.approx(1, abs=1e-12)
    assert found.similarity_change < 1e-6
    assert (found.changed_answers, found.changed_finds) == (0, 0)


def test_the_least_is_of_the_row_that_moved_most() -> None:
    reference = Embeddings(np.stack([_turned(0), _turned(90), _turned(180)]), _turned(0)[None])
    other = Embeddings(np.stack([_turned(10), _turned(90), _turned(180 + 60)]), _turned(0)[None])
    found = compare(reference, other)
    assert found.image_cosine == pytest.approx(0.5, abs=1e-6)  # 60 degrees
    assert found.similarity_change == pytest.approx(0.5, abs=1e-6)  # cos 240 - cos 180
    assert found.text_cosine == pytest.approx(1)


def test_what_all_embeddings_share_does_not_hide_the_error_when_centred() -> None:
    common = np.zeros(17)
    common[-1] = 100
    own = np.pad(IMAGES, ((0, 0), (0, 1)))
    texts = np.pad(TEXTS, ((0, 0), (0, 1)))
    found = compare(Embeddings(common + own, texts), Embeddings(common - own, texts))
    assert found.image_cosine > 0.99
    assert found.image_centred_cosine is not None
    assert found.image_centred_cosine < -0.8


def test_a_single_row_and_equal_rows_have_no_centred_cosine() -> None:
    found = compare(Embeddings(IMAGES[:1], TEXTS[[0, 0, 0]]), Embeddings(IMAGES[:1] + 0.1, TEXTS[[0, 1, 2]]))
    assert found.image_centred_cosine is None
    assert found.text_centred_cosine is None
    assert found.image_cosine < 1
    assert compare(Embeddings(IMAGES[:2], TEXTS), Embeddings(IMAGES[:2], TEXTS)).image_centred_cosine is not None


def test_rows_that_all_fell_together_have_a_centred_cosine_of_at_most_0() -> None:
    centre = (IMAGES / np.linalg.norm(IMAGES, axis=1, keepdims=True)).mean(axis=0)
    found = compare(REFERENCE, Embeddings(np.repeat(centre[None], 7, axis=0), TEXTS))
    assert found.image_centred_cosine is not None
    assert found.image_centred_cosine < 1e-9


def test_changed_answers_and_finds_are_counted_each_their_way() -> None:
    axes = np.eye(4, dtype=np.float32)
    swapped = axes[[1, 0, 2, 3]]
    found = compare(Embeddings(axes, axes), Embeddings(swapped, axes))
    assert (found.changed_answers, found.changed_finds) == (2, 2)
    assert (found.changed_answers_share, found.changed_finds_share) == (0.5, 0.5)
    fourth_lost = compare(Embeddings(axes, axes[:3]), Embeddings(axes[[0, 1, 2, 2]], axes[:3]))
    assert (
        fourth_lost.changed_answers == 0
    )  # three texts were as good as each other for it, and now one of them is best
    assert fourth_lost.changed_finds == 1  # but the third text now finds either of two


def test_a_tie_may_be_broken_and_none_may_appear() -> None:
    image = _turned(0)[None]
    apart, together = np.stack([_turned(10), _turned(40)]), np.stack([_turned(10), _turned(-10)])
    assert compare(Embeddings(image, together), Embeddings(image, apart)).changed_answers == 0
    assert compare(Embeddings(image, apart), Embeddings(image, together)).changed_answers == 1


def test_a_form_that_says_the_same_of_everything_has_lost_every_answer() -> None:
    constant = Embeddings(np.ones_like(IMAGES), np.ones_like(TEXTS))
    found = compare(REFERENCE, constant)
    assert (found.changed_answers, found.changed_finds) == (7, 5)


def test_rounding_of_half_precision_is_seen_in_its_size() -> None:
    found = compare(REFERENCE, Embeddings(IMAGES.astype(np.float16), TEXTS.astype(np.float16)))
    assert 1e-8 < 1 - found.image_cosine < 1e-6
    assert 0 < found.similarity_change < 1e-3


def test_it_is_json() -> None:
    found = compare(REFERENCE, Embeddings(IMAGES[::-1], TEXTS))
    read = json.loads(json.dumps(found.to_dict()))
    assert read["changed_answers"] == found.changed_answers > 0
    assert read["changed_answers_share"] == found.changed_answers / 7
    assert set(read) == {
        *("images", "texts", "image_cosine", "image_centred_cosine", "text_cosine", "text_centred_cosine"),
        *("similarity_change", "changed_answers", "changed_finds", "changed_answers_share", "changed_finds_share"),
    }


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Embeddings(IMAGES[:6], TEXTS), r"images have shapes \(7, 16\) and \(6, 16\)"),
        (Embeddings(IMAGES, TEXTS[:, :8]), r"texts have shapes \(5, 16\) and \(5, 8\)"),
        (Embeddings(IMAGES, TEXTS * [[1], [1], [np.nan], [1], [1]]), "texts of the other form: row 2 has norm nan"),
        (Embeddings(IMAGES * [[1], [0], [1], [1], [1], [1], [1]], TEXTS), "images of the other form: row 1 has norm 0"),
        (Embeddings(IMAGES * np.float32(np.inf), TEXTS), "row 0 has norm"),
    ],
)
def test_rows_that_cannot_be_compared_are_told(other: Embeddings, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        compare(REFERENCE, other)


def test_no_rows_and_two_spaces_are_told() -> None:
    empty = Embeddings(IMAGES[:0], TEXTS)
    with pytest.raises(ShapeError, match="at least one row"):
        compare(empty, empty)
    spaces = Embeddings(IMAGES, TEXTS[:, :8])
    with pytest.raises(ShapeError, match="one joint space"):
        compare(spaces, spaces)


def test_it_needs_no_torch() -> None:
    code = "import sys, clip.fidelity; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
