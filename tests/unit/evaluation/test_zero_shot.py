"""Zero-shot classification: the paper's formula, known answers, and what is refused."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clip.clip import tokenize
from clip.errors import ConfigError, ImageError, ShapeError, TextTooLongError
from clip.evaluation.zero_shot import ZeroShotClassifier
from clip.features import Failure
from clip.model import CLIP
from clip.preprocess import Preprocess

PREPROCESS = Preprocess(size=32)


class Colours(nn.Module):
    """A stand-in with known answers: pictures and texts are embedded as their shares of red, green and blue."""

    context_length = 77
    vocab_size = 49408
    config = types.SimpleNamespace(embed_dim=3)

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.eval()
        self.texts_encoded = 0
        self._words = {int(tokenize(word)[0, 1]): i for i, word in enumerate(("red", "green", "blue"))}

    def encode_image(self, pixels: Tensor) -> Tensor:
        return 7 * pixels.mean(dim=(2, 3))

    def encode_text(self, ids: Tensor) -> Tensor:
        self.texts_encoded += len(ids)
        features = torch.full((len(ids), 3), 0.01)
        for row, text in enumerate(ids.tolist()):
            for token in text:
                if token in self._words:
                    features[row, self._words[token]] += 5
        return features


class Plain:
    """Pixels as shares of one."""

    size = 4

    def __call__(self, pixels: np.ndarray | Image.Image) -> Tensor:
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255


def colour(red: int, green: int, blue: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (red, green, blue))


def colours(*names: str, **options: object) -> ZeroShotClassifier:
    return ZeroShotClassifier(Colours(), names, preprocess=Plain(), **options)  # type: ignore[arg-type]


def test_each_colour_gets_its_name() -> None:
    images = [colour(0, 0, 200), colour(200, 0, 0), colour(0, 99, 0), colour(200, 80, 0)]
    answers = list(colours("red", "green", "blue").classify(images, batch_size=3))
    assert [answer.label for answer in answers] == ["blue", "red", "green", "red"]
    assert [answer.position for answer in answers] == [0, 1, 2, 3]
    assert all(answer.source is image for answer, image in zip(answers, images, strict=True))
    assert answers[3].labels == ("red", "green", "blue")
    assert sum(answers[3].probabilities) == pytest.approx(1)
    assert answers[3].cosines[0] == pytest.approx(200 / np.hypot(200, 80), abs=0.01)


def test_one_image_is_answered_as_one_of_many() -> None:
    classifier = colours("red", "green")
    image = colour(200, 80, 0)
    assert classifier(image) == next(classifier.classify([image]))
    assert len(classifier(image, top_k=1).labels) == 1
    assert len(classifier(image, top_k=5).labels) == 2


def test_class_embeddings_are_normalized_then_averaged_then_normalized(tiny_vit: CLIP) -> None:
    names, templates = ["owl", "hot dog", "cat"], ["a {}", "{}", "a very large picture of the {} in the evening"]
    with torch.no_grad():
        features = [tiny_vit.encode_text(tokenize([t.format(name) for t in templates])) for name in names]
    expected = torch.stack([F.normalize(F.normalize(f, dim=-1).mean(dim=0), dim=0) for f in features])
    found = ZeroShotClassifier(tiny_vit, names, templates).class_embeddings
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def test_prompts_of_larger_norm_weigh_no_more() -> None:
    class Loud(Colours):
        def encode_text(self, ids: Tensor) -> Tensor:
            return super().encode_text(ids) * ids[:, 2:3].clamp(max=1000)  # any positive factor by text

    names, templates = ["red", "blue"], ["{} green", "{} paper", "{}"]
    quiet = ZeroShotClassifier(Colours(), names, templates)  # type: ignore[arg-type]
    loud = ZeroShotClassifier(Loud(), names, templates)  # type: ignore[arg-type]
    np.testing.assert_allclose(loud.class_embeddings, quiet.class_embeddings, atol=1e-6)


def test_probabilities_are_those_of_the_model_itself(tiny_vit: CLIP) -> None:
    names = ["owl", "cat", "dog"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    with torch.no_grad():
        logits, _ = tiny_vit(PREPROCESS(image).unsqueeze(0), tokenize(names))
    answer = ZeroShotClassifier(tiny_vit, names, ["{}"], preprocess=PREPROCESS)(image)
    found = dict(zip(answer.labels, answer.probabilities, strict=True))
    assert [found[name] for name in names] == pytest.approx(logits.softmax(dim=-1)[0].tolist(), abs=1e-6)


def test_embeddings_at_hand_are_scored_whatever_their_norm(tiny_vit: CLIP) -> None:
    classifier = ZeroShotClassifier(tiny_vit, ["owl", "cat"])
    embeddings = torch.randn(5, 16)
    scores = classifier.scores(embeddings)
    expected = F.normalize(embeddings, dim=-1) @ torch.from_numpy(classifier.class_embeddings).t()
    np.testing.assert_allclose(scores.cosines, expected, atol=1e-6)
    for same in (embeddings.numpy(), (3 * embeddings).double(), embeddings.requires_grad_()):
        np.testing.assert_allclose(classifier.scores(same).probabilities, scores.probabilities, atol=1e-6)
    assert scores.cosines.dtype == scores.probabilities.dtype == scores.background.dtype == np.float32
    assert classifier.scores(embeddings[:0]).probabilities.shape == (0, 2)
    with pytest.raises(ShapeError, match=r"\(5, 3\); \(images, 16\)"):
        classifier.scores(torch.randn(5, 3))
    with pytest.raises(ShapeError, match=r"\(16,\)"):
        classifier.scores(torch.randn(16))


def test_ties_keep_the_order_of_the_names() -> None:
    assert colours("blue", "red", "green")(colour(9, 9, 9)).labels == ("blue", "red", "green")


def test_synonyms_make_one_class_called_by_the_first() -> None:
    classifier = colours(("red", "green"), "blue")  # type: ignore[arg-type]
    assert classifier.class_names == ("red", "blue")
    assert classifier(colour(0, 200, 0)).label == "red"


def test_other_names_cost_only_what_is_new() -> None:
    classifier = colours("red", "green", templates=["{}", "a {}"])
    model = classifier.model
    assert model.texts_encoded == 4
    other = classifier.with_classes(["blue", "green"])
    assert model.texts_encoded == 6
    assert (classifier.class_names, other.class_names) == (("red", "green"), ("blue", "green"))
    assert other(colour(0, 0, 9)).label == "blue"
    fresh = colours("blue", "green", templates=["{}", "a {}"])
    np.testing.assert_allclose(other.class_embeddings, fresh.class_embeddings, atol=1e-6)
    assert other.with_classes(["green", "blue"])(colour(0, 0, 9)).label == "blue"
    assert model.texts_encoded == 6


def test_an_unsure_answer_can_be_rejected() -> None:
    classifier = colours("red", "green")
    unsure = colour(100, 90, 0)
    assert classifier(unsure).label == "red"
    answer = classifier(unsure, reject_below=0.9)
    assert answer.is_rejected
    assert answer.label is None
    assert answer.labels == ("red", "green")
    assert classifier(colour(200, 0, 0), reject_below=0.9).label == "red"


def test_without_competition_even_a_picture_of_nothing_is_sure_of_something() -> None:
    blue = colour(10, 0, 200)
    assert colours("red", "green")(blue).label == "red"  # a softmax over the names given knows no other
    answer = colours("red", "green", background=["blue paper"])(blue)
    assert answer.label is None
    assert answer.background > 0.9
    assert answer.background + sum(answer.probabilities) == pytest.approx(1)
    assert colours("red", "green", background=["blue paper"])(colour(200, 0, 10)).label == "red"


def test_a_lone_class_needs_a_background() -> None:
    with pytest.raises(ConfigError, match="only class"):
        colours("red")
    classifier = colours("red", background=["blue"])
    assert [a.label for a in classifier.classify([colour(9, 0, 0), colour(0, 0, 9)])] == ["red", None]
    with pytest.raises(ConfigError, match="only class"):
        colours("red", "blue").with_classes(["red"])


def test_a_class_name_that_is_too_long_is_told_with_its_prompt(tiny_vit: CLIP) -> None:
    with pytest.raises(TextTooLongError, match=r"'a photo of owl owl .*' has 103 tokens .* 77; shorten the class name"):
        ZeroShotClassifier(tiny_vit, ["cat", "owl " * 98], ["a photo of {}"])


def test_a_class_name_cannot_end_the_prompt(tiny_vit: CLIP) -> None:
    classifier = ZeroShotClassifier(tiny_vit, ["cat", "cat<|endoftext|> owl"], ["{}"])
    assert float(classifier.class_embeddings[0] @ classifier.class_embeddings[1]) < 0.999


def test_bad_pictures_are_reported_and_left_out(tmp_path: Path, tiny_vit: CLIP) -> None:
    path = tmp_path / "a.png"
    colour(200, 0, 0).save(path)
    classifier = ZeroShotClassifier(tiny_vit, ["red", "green"], preprocess=PREPROCESS)
    failures: list[Failure] = []
    answers = list(classifier.classify([path, tmp_path / "gone", path], on_error=failures.append))
    assert [answer.position for answer in answers] == [0, 2]
    assert [failure.position for failure in failures] == [1]
    with pytest.raises(ImageError, match="gone"):
        classifier(tmp_path / "gone")


def test_bad_options(tiny_vit: CLIP) -> None:
    classifier = colours("red", "green")
    for options, message in (({"reject_below": 1.5}, "reject_below is 1.5"), ({"top_k": 0}, "top_k is 0")):
        with pytest.raises(ConfigError, match=message):
            classifier.classify([], **options)
    with pytest.raises(ConfigError, match="pass preprocess="):
        ZeroShotClassifier(tiny_vit, ["red", "green"])(colour(0, 0, 0))
    with pytest.raises(ConfigError, match="template"):
        colours("red", "green", templates=["a photo"])
