"""CLIPScore and RefCLIPScore against their formulae, written out here once more; and files of captions."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import clip
from clip.errors import ConfigError, DataError, ImageError, ShapeError
from clip.guidance.captions import read_captions
from clip.guidance.scores import Candidate, Scored, clip_score, ranked, ref_clip_score, score_images
from clip.model import CLIP
from clip.preprocess import Preprocess

Array = NDArray[Any]


def cosine(a: Array, b: Array) -> float:
    """By the definition, with Python's exact sums."""
    dot = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(float(x) ** 2 for x in a) * math.fsum(float(y) ** 2 for y in b))


def rows(n: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(n, 24)).astype(np.float32) + 0.3


# The formulae ---------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    image = [[1.0, 0.0]]
    assert clip_score(image, [[3.0, 4.0]]) == pytest.approx([2.5 * 0.6])
    assert clip_score(image, [[-3.0, 4.0]]).tolist() == [0.0]
    # CLIPScore 1.5; the nearest reference has cosine 0.8 to the text
    score = ref_clip_score(image, [[3.0, 4.0]], [[[0.0, 2.0], [1.0, 0.0], [-5.0, 0.0]]])
    assert score == pytest.approx([2 * 1.5 * 0.8 / (1.5 + 0.8)])


def test_zero_where_either_is_zero_and_no_division_by_it() -> None:
    opposite, text = [[-1.0, 0.0]], [[1.0, 0.0]]
    assert ref_clip_score(opposite, text, [text]).tolist() == [0.0]
    assert ref_clip_score(text, text, [opposite]).tolist() == [0.0]
    assert ref_clip_score(opposite, text, [opposite]).tolist() == [0.0]


def test_against_exact_sums() -> None:
    images, texts = rows(50, 1), rows(50, 2)
    references = [rows(1 + i % 4, 100 + i) for i in range(50)]
    first = [2.5 * max(cosine(image, text), 0) for image, text in zip(images, texts, strict=True)]
    assert clip_score(images, texts) == pytest.approx(first, rel=1e-12)
    expected = []
    for score, text, several in zip(first, texts, references, strict=True):
        nearest = max(0.0, *(cosine(text, one) for one in several))
        expected.append(0.0 if score * nearest == 0 else 2 / (1 / score + 1 / nearest))
    assert ref_clip_score(images, texts, references) == pytest.approx(expected, rel=1e-12)
    assert 0.0 in first, "the clip at zero is met"


def test_features_of_any_norm_and_precision_give_the_same() -> None:
    """In half precision, the norm of these would overflow and the score would be zero."""
    images, texts = rows(8, 3), rows(8, 4)
    expected = clip_score(images, texts)
    assert clip_score(images * 1e20, texts * 1e-20) == pytest.approx(expected, rel=1e-6)
    large = (images * 300).astype(np.float16)
    with np.errstate(over="ignore"):
        assert np.isinf((large**2).sum(axis=1)).all()
    assert clip_score(large, texts) == pytest.approx(expected, rel=2e-3)


def test_one_text_for_all() -> None:
    images, text = rows(5, 5), rows(1, 6)
    assert clip_score(images, text).tolist() == clip_score(images, np.repeat(text, 5, axis=0)).tolist()
    references = [rows(2, 7)] * 5
    expected = ref_clip_score(images, np.repeat(text, 5, axis=0), references)
    assert ref_clip_score(images, text, references).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (np.ones(4), np.ones((1, 4)), r"image features are \(4,\)"),
        (np.ones((2, 4)), np.ones((3, 4)), r"image features are \(2, 4\) and text features \(3, 4\)"),
        (np.ones((2, 4)), np.ones((2, 5)), r"\(N, E\) twice"),
        (np.ones((2, 4)), np.zeros((2, 4)), "text features: row 0 has norm 0"),
        (np.full((2, 4), np.nan), np.ones((2, 4)), "image features: row 0 has norm nan"),
    ],
)
def test_shapes_and_rows_without_direction_are_refused(images: Array, texts: Array, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        clip_score(images, texts)


def test_references_must_be_there_for_each() -> None:
    images = rows(2, 1)
    with pytest.raises(ShapeError, match="references for 1 pictures, and 2 pictures"):
        ref_clip_score(images, images, [images])
    with pytest.raises(ShapeError, match=r"references of picture 1 are \(0, 24\)"):
        ref_clip_score(images, images, [images, images[:0]])


# On pictures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return paths


def directly(model: CLIP, picture: Path, *texts: str) -> tuple[Array, list[Array]]:
    """Features by the public face, one at a time, in float32."""
    image = model.encode_image(Preprocess(size=32)(Image.open(picture))[None]).detach().numpy()[0]
    return image, [model.encode_text(clip.tokenize(text, truncate=True)).detach().numpy()[0] for text in texts]


def test_pictures_and_texts(tiny_vit: CLIP, pictures: list[Path]) -> None:
    """Each with the text behind the prefix, in order, whatever the batches; RefCLIPScore where there are references."""
    captions = ("a dog", "a cat", "a dog", "nothing at all", "a dog")
    candidates = [
        Candidate(str(path), text, ("two cats", "a mouse") if i % 2 else ())
        for i, (path, text) in enumerate(zip(pictures, captions, strict=True))
    ]
    found = list(score_images(tiny_vit, Preprocess(size=32), iter(candidates), batch_size=2))
    assert [(one.position, one.image, one.text) for one in found] == [
        (i, candidate.image, candidate.text) for i, candidate in enumerate(candidates)
    ]
    for one, candidate, path in zip(found, candidates, pictures, strict=True):
        prompts = [f"A photo depicts {text}" for text in (candidate.text, *candidate.references)]
        image, (text, *references) = directly(tiny_vit, path, *prompts)
        first = 2.5 * max(cosine(image, text), 0)
        assert one.clip_score == pytest.approx(first, abs=1e-5)
        if not candidate.references:
            assert one.ref_clip_score is None
            continue
        second = max(0.0, *(cosine(text, reference) for reference in references))
        expected = 2 * first * second / (first + second) if first + second else 0.0
        assert one.ref_clip_score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("prefix", "before"), [("", ""), ("  ", ""), ("An icon of", "An icon of "), ("a ", "a ")])
def test_another_prefix(tiny_vit: CLIP, pictures: list[Path], prefix: str, before: str) -> None:
    [one] = score_images(tiny_vit, Preprocess(size=32), [Candidate(str(pictures[0]), "dog")], prefix=prefix)
    image, [text] = directly(tiny_vit, pictures[0], f"{before}dog")
    assert one.clip_score == pytest.approx(2.5 * max(cosine(image, text), 0), abs=1e-5)


def test_a_long_text_is_cut_as_in_the_original_and_said_to_be(tiny_vit: CLIP, pictures: list[Path]) -> None:
    long = "word " * 100
    candidates = [
        Candidate(str(pictures[0]), long),
        Candidate(str(pictures[1]), "short", (long,)),
        Candidate(str(pictures[2]), "short", ("x",)),
    ]
    found = list(score_images(tiny_vit, Preprocess(size=32), candidates))
    assert [one.is_cut for one in found] == [True, True, False]
    image, [text] = directly(tiny_vit, pictures[0], f"A photo depicts {long}")
    assert found[0].clip_score == pytest.approx(2.5 * max(cosine(image, text), 0), abs=1e-5)


def test_a_picture_that_cannot_be_read_shifts_no_text(tiny_vit: CLIP, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    texts = ["a", "b", "c"]
    candidates = [
        Candidate(str(path), text) for path, text in zip((pictures[0], broken, pictures[1]), texts, strict=True)
    ]
    failures: list[Any] = []
    found = list(score_images(tiny_vit, Preprocess(size=32), candidates, on_error=failures.append))
    assert [(one.position, one.text) for one in found] == [(0, "a"), (2, "c")]
    assert [failure.position for failure in failures] == [1]
    alone = list(score_images(tiny_vit, Preprocess(size=32), [candidates[2]]))
    assert found[1].clip_score == pytest.approx(alone[0].clip_score, abs=1e-6)
    with pytest.raises(ImageError):
        list(score_images(tiny_vit, Preprocess(size=32), candidates))


def test_an_endless_stream_is_read_a_few_batches_ahead(tiny_vit: CLIP, pictures: list[Path]) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield Candidate(str(pictures[taken % 5]), f"text {taken}")

    stream = score_images(tiny_vit, Preprocess(size=32), endless(), batch_size=2)
    assert [next(stream).text for _ in range(3)] == ["text 1", "text 2", "text 3"]
    assert taken < 20
    stream.close()  # type: ignore[attr-defined]


def test_every_kind_of_picture_gives_the_same(tiny_vit: CLIP, pictures: list[Path]) -> None:
    preprocess = Preprocess(size=32)
    image = Image.open(pictures[0])
    kinds = [
        *(pictures[0], str(pictures[0]), pictures[0].read_bytes(), pictures[0].open("rb")),
        *(image, np.asarray(image), preprocess(image), preprocess(image).numpy()),
    ]
    found = list(score_images(tiny_vit, preprocess, [Candidate(kind, "a dog") for kind in kinds]))
    assert [one.clip_score for one in found] == pytest.approx([found[0].clip_score] * len(kinds), abs=1e-6)
    kinds[3].close()


def test_an_empty_text_is_refused(tiny_vit: CLIP, pictures: list[Path]) -> None:
    with pytest.raises(ConfigError, match="candidate 1 has an empty text or reference"):
        list(
            score_images(
                tiny_vit,
                Preprocess(size=32),
                [Candidate(str(pictures[0]), "a"), Candidate(str(pictures[1]), "a", (" ",))],
            )
        )


# The best of them -----------------------------------------------------------------------------------------------------


def scored(position: int, text: str, first: float, second: float | None = None) -> Scored:
    return Scored(
        position=position, image=f"{position}.png", text=text, clip_score=first, ref_clip_score=second, is_cut=False
    )


def test_best_first_for_each_text_and_ties_in_their_order() -> None:
    stream = [
        scored(0, "b", 0.2),
        scored(1, "a", 0.9),
        scored(2, "b", 0.7),
        scored(3, "b", 0.2),
        scored(4, "a", 0.1, 1.0),  # the other picture of this text has no references
        scored(5, "c", 0.9, 0.1),
        scored(6, "c", 0.1, 0.2),
    ]
    assert [[one.position for one in group] for group in ranked(stream)] == [[2, 0, 3], [1, 4], [6, 5]]
    assert [[one.position for one in group] for group in ranked(stream, keep=1)] == [[2], [1], [6]]
    with pytest.raises(ConfigError, match="keep is 0; it must be at least 1"):
        ranked(stream, keep=0)


# Files of captions ----------------------------------------------------------------------------------------------------


def test_a_table_and_json_lines_say_the_same(tmp_path: Path) -> None:
    table, lines = tmp_path / "captions.csv", tmp_path / "captions.jsonl"
    table.write_text(
        '\ufeffcaption,path,references\r\n"a dog, on a beach",1.png,a dog |the sea\r\n\r\nEin Hund,inside/2.png,\r\n',
        encoding="utf-8",
    )
    lines.write_text(
        '{"path": "1.png", "caption": "a dog, on a beach", "references": ["a dog", "the sea"]}\n\n'
        '{"path": "inside/2.png", "caption": "Ein Hund"}\n'
    )
    expected = [
        Candidate(str(tmp_path / "1.png"), "a dog, on a beach", ("a dog", "the sea")),
        Candidate(str(tmp_path / "inside/2.png"), "Ein Hund"),
    ]
    assert read_captions(table) == read_captions(lines) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header is ''; write path,caption"),
        ("path,captoin\n", "line 1: there is no column 'captoin'; the columns are caption, path, references"),
        ("path,path,caption\n", "line 1: the header is 'path,path,caption'"),
        ("path\na.png\n", "line 1: the header is 'path'"),
        ("path,caption\n", "has no pictures; write a line for each"),
        ("path,caption\na.png,a dog\nb.png,a dog, a cat\n", "line 3: has 3 cells, and the header 2; quote a text"),
        ("path,caption\na.png,\n", "line 2: caption is ''; a text that is not empty"),
        ("path,caption\n,a dog\n", "line 2: path is ''"),
        ("path,caption,references\na.png,a dog,a||b\n", r"line 2: references is \['a', '', 'b'\]"),
        ('path,caption\na.png,"a dog\n', "line 2: is no CSV"),
        ('{"path": "a.png", "caption": 1}', "line 1: caption is 1; a text"),
        ('{"path": "a.png", "caption": "a", "refs": []}', "line 1: there is no key 'refs'; the keys are references"),
        ('{"path": "a.png", "caption": "a"}\n[]', r"line 2: is '\[\]'; an object"),
        ('{"path": "a.png", "caption": "a", "references": [1]}', r"line 1: references is \[1\]"),
        ('{"path": ', "line 1: is no JSON"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "captions.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=f"captions.csv(, |: ){message}"):
        read_captions(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "captions.csv"
    file.write_bytes(b"path,caption\na.png,\xff\n")
    with pytest.raises(DataError, match="is not UTF-8 at byte 19; save it as UTF-8"):
        read_captions(file)
    for path in (tmp_path / "none.csv", tmp_path, "a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            read_captions(path)


def test_random_bytes_give_candidates_or_an_error_of_ours(tmp_path: Path) -> None:
    rng = random.Random(0)
    file = tmp_path / "captions.csv"
    for original in (
        b'path,caption,references\na.png,"a, b",c|d\n',
        b'{"path": "a", "caption": "b", "references": ["c"]}\n',
    ):
        for _ in range(300):
            data = bytearray(original * 2)
            for _ in range(rng.choice((1, 2, 8))):
                data[rng.randrange(len(data))] = rng.choice(b'\0\r\n",|{}[]:x\xff\\' + bytes(range(48, 58)))
            file.write_bytes(data)
            try:
                assert all(isinstance(one, Candidate) for one in read_captions(file))
            except DataError as error:
                assert str(error).startswith(str(file))
