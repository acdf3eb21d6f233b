"""The one fast path: every verb that encodes runs through it, computes nothing twice, and answers as fp32 does."""

from __future__ import annotations

import csv
import gc
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import clip
from clip.cli.main import run
from clip.embedding_files import read_embeddings
from clip.evaluation.zero_shot import ZeroShotClassifier
from clip.features import encode_images, encode_texts
from clip.images import read_image
from clip.inference import loading, precision
from clip.inference.optimized import InferenceCLIP
from clip.inference.packed import PackedLinear
from clip.model import CLIP, CLIPConfig
from clip.prompts import read_names
from clip.simple_tokenizer import token_ids

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
POCKET = Path(clip.__path__[0]) / "pocket.safetensors"
PICTURES = sorted(str(path) for kind in ("emoji/*.png", "photos/*.jpg") for path in EXAMPLES.glob(kind))

pytestmark = pytest.mark.skipif(not POCKET.exists(), reason="pocket is not in this checkout")

Verb = Callable[..., str]


def rows(kind: str) -> list[dict[str, str]]:
    with (EXAMPLES / kind / "labels.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Runs ``clip`` with these arguments in this process, and gives what it prints."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert run([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def exact() -> tuple[CLIP, Any]:
    return clip.load("pocket", device="cpu")


# One place that models come from --------------------------------------------------------------------------------------

CALLS = {
    "classify": ("classify", "examples/emoji/fox.png", "--labels", "fox,owl"),
    "encode": ("encode", "examples/emoji/fox.png", "--overwrite", "--output"),
    "evaluate": ("evaluate", "--data", "examples/emoji/labels.csv", "--caption-column", "label", "--limit", "4"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_verb_that_encodes_gets_its_model_from_the_one_place(
    verb: Verb, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    encoded_by: set[int] = set()
    load, encode = loading.load_for_inference, InferenceCLIP.encode_image

    def spy_on_load(*arguments: Any, **options: Any) -> Any:
        given.append(load(*arguments, **options)[0])
        return given[-1], load(*arguments, **options)[1]

    def spy_on_encode(self: InferenceCLIP, image: Tensor) -> Tensor:
        encoded_by.add(id(self))
        return encode(self, image)

    monkeypatch.setattr(loading, "load_for_inference", spy_on_load)
    monkeypatch.setattr(InferenceCLIP, "encode_image", spy_on_encode)
    verb(*CALLS[name], *([tmp_path / "out.npy"] if name == "encode" else []), "--device", "cpu")
    assert len(given) == 1
    assert encoded_by == {id(given[0])}


# Nothing is computed twice, or for nobody -----------------------------------------------------------------------------


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Multiplications of each product with packed weights, as they are computed."""
    done: list[int] = []
    multiply = PackedLinear.__call__

    def counted(self: PackedLinear, x: Tensor) -> Tensor:
        done.append(x.shape[0] * self.in_features * self.out_features)
        return multiply(self, x)

    monkeypatch.setattr(PackedLinear, "__call__", counted)
    return done


def multiplications(tokens: int, sequences: int, width: int, layers: int) -> int:
    """Of the packed layers over sequences of so many tokens together, the last block read at one token of each.

    A block has 12 width²: query, key, value, output, and twice 4 in the MLP. The last has no keys and values.
    """
    return width**2 * ((layers - 1) * 12 * tokens + 10 * sequences)


@pytest.mark.parametrize("batch_size", [2, 100])
def test_no_padding_token_is_computed(products: list[int], batch_size: int) -> None:
    model, _ = loading.load_for_inference("pocket", device="cpu")
    texts = ["owl", "a photo of an owl at night", "", "a fox and a dog and a cat and a bird", "owl"]
    list(encode_texts(model, texts, batch_size=batch_size))
    tokens = int((token_ids(texts, model.context_length) != 0).sum())
    config = model.config
    assert sum(products) == multiplications(tokens, len(texts), config.transformer_width, config.transformer_layers)


def test_no_token_of_an_image_is_computed_that_nobody_reads(
    products: list[int], tiny_vit: CLIP, tmp_path: Path
) -> None:
    clip.save(tiny_vit, tmp_path / "vit.safetensors")
    model, preprocess = loading.load_for_inference(tmp_path / "vit.safetensors", device="cpu")
    list(encode_images(model, preprocess, PICTURES[:5], batch_size=2))
    width, size, patches = 64, 16, (32 // 16) ** 2  # of the tiny model
    blocks = multiplications(5 * (patches + 1), 5, width, 2)
    assert sum(products) == blocks + 5 * patches * 3 * size**2 * width


def live_tensors() -> dict[int, Tensor]:
    gc.collect()
    return {id(item): item for item in gc.get_objects() if type(item) in (Tensor, torch.nn.Parameter)}


def numbers(tensors: list[Tensor]) -> int:
    """How many there are in memory; what several tensors share counts once."""
    own = sum(tensor.numel() for tensor in tensors if tensor.is_mkldnn)  # opaque, but never shared
    storages = ((tensor.untyped_storage(), tensor.element_size()) for tensor in tensors if not tensor.is_mkldnn)
    return own + sum({storage.data_ptr(): storage.nbytes() // size for storage, size in storages}.values())


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_no_second_copy_of_the_weights_stays_in_memory(
    verb: Verb, asked: str, exact: tuple[CLIP, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = live_tensors()
    models = sum(type(item) is CLIP for item in gc.get_objects())
    held: list[int] = []
    encode = InferenceCLIP.encode_image

    def look(self: InferenceCLIP, image: Tensor) -> Tensor:
        held.append(numbers([new for key, new in live_tensors().items() if key not in before and new is not image]))
        assert sum(type(item) is CLIP for item in gc.get_objects()) == models
        return encode(self, image)

    monkeypatch.setattr(InferenceCLIP, "encode_image", look)
    verb(*CALLS["classify"], "--device", "cpu", "--precision", asked)
    assert len(held) == 1
    assert held[0] == pytest.approx(sum(parameter.numel() for parameter in exact[0].parameters()), rel=0.02)


# The same answers -----------------------------------------------------------------------------------------------------


def embeddings_of(model: Any, preprocess: Any) -> NDArray[np.float32]:
    return np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, PICTURES)])


@pytest.mark.parametrize("asked", ["fp32", "bf16", "auto"])
def test_embeddings_of_the_examples_agree_with_fp32(
    verb: Verb, exact: tuple[CLIP, Any], asked: str, tmp_path: Path
) -> None:
    call = ("encode", *PICTURES, "--output", tmp_path / "out.npy", "--device", "cpu", "--precision", asked, "--quiet")
    verb(*call)
    stored = read_embeddings(tmp_path / "out.npy")
    assert stored.sources == PICTURES
    cosines = (stored.embeddings * embeddings_of(*exact)).sum(axis=1)
    assert cosines.min() > (0.999999 if asked == "fp32" else 0.9999)


@pytest.mark.parametrize("asked", ["fp32", "bf16", "auto"])
@pytest.mark.parametrize("kind", ["emoji", "photos"])
def test_answers_on_the_examples_are_those_of_fp32(
    verb: Verb, exact: tuple[CLIP, Any], asked: Any, kind: str, tmp_path: Path
) -> None:
    files = [f"examples/{kind}/{row['file']}" for row in rows(kind)]
    names = [row["label"] for row in rows(kind)]
    (tmp_path / "labels.txt").write_text("\n".join(names), encoding="utf-8")
    call = ("classify", *files, "--labels-file", tmp_path / "labels.txt", "--json", "--device", "cpu")
    found = [json.loads(line) for line in verb(*call, "--precision", asked).splitlines()]
    expected = list(ZeroShotClassifier(exact[0], names, preprocess=exact[1]).classify(files))
    assert [line["label"] for line in found] == [answer.label for answer in expected]
    assert {line["precision"] for line in found} == {precision.resolved(asked)}


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_only_a_tie_can_fall_otherwise_than_in_fp32(exact: tuple[CLIP, Any], asked: Any) -> None:
    # Among fifty names, most of which are of none of the pictures, two can be as good as equal: pocket finds "eagle"
    # and "beans" 0.0006 apart for the sheep. No similarity moves by more than 0.005, so no clearer answer can change.
    names = read_names(EXAMPLES / "labels.txt")
    model, _ = loading.load_for_inference("pocket", device="cpu", precision=asked)
    right = ZeroShotClassifier(exact[0], names).scores(embeddings_of(*exact)).cosines
    found = ZeroShotClassifier(model, names).scores(embeddings_of(model, exact[1])).cosines
    assert np.abs(found - right).max() < (1e-5 if asked == "fp32" else 0.005)
    best, second = np.sort(right, axis=1)[:, :-3:-1].T
    is_clear = best - second > (1e-5 if asked == "fp32" else 0.005)
    assert is_clear.mean() > 0.8
    assert (found.argmax(axis=1) == right.argmax(axis=1))[is_clear].all()


def test_the_numbers_of_an_evaluation_are_those_of_fp32(verb: Verb) -> None:
    names = ("--class-names", "examples/labels.txt")
    call = ("evaluate", "--data", "examples/emoji/labels.csv", "--caption-column", "label", *names, "--device", "cpu")
    fast, slow = (json.loads(verb(*call, "--json", "--precision", asked)) for asked in ("auto", "fp32"))
    assert fast["classification"]["top1"]["value"] == slow["classification"]["top1"]["value"]


# Without units for bf16 -----------------------------------------------------------------------------------------------


def test_a_processor_without_bf16_falls_back_to_fp32_says_so_and_answers_the_same(
    verb: Verb, exact: tuple[CLIP, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "has_bf16_units", lambda: False)
    call = ("classify", *PICTURES, "--labels-file", "examples/labels.txt", "--json", "--device", "cpu")
    with caplog.at_level(logging.INFO, logger="clip"):
        found = [json.loads(line) for line in verb(*call).splitlines()]
    assert sum("neither AMX nor AVX-512-BF16" in record.message for record in caplog.records) == 1
    assert {line["precision"] for line in found} == {"fp32"}
    names = read_names(EXAMPLES / "labels.txt")
    expected = list(ZeroShotClassifier(exact[0], names, preprocess=exact[1]).classify(PICTURES))
    assert [line["label"] for line in found] == [answer.label for answer in expected]
    for line, answer in zip(found, expected, strict=True):
        assert [score["cosine"] for score in line["scores"]] == pytest.approx(answer.cosines[:3], abs=1e-5)


def test_the_fallback_is_shown_by_debug() -> None:
    code = (
        "from clip.cli.main import main\n"
        "from clip.inference import precision\n"
        "precision.has_bf16_units = lambda: False\n"
        "main()\n"
    )
    call = [sys.executable, "-c", code, *CALLS["classify"], "--device", "cpu", "--debug"]
    outcome = subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "clip: precision fp32: this processor has neither AMX nor AVX-512-BF16" in outcome.stderr
    assert "clip: pocket: fp32 by torch on cpu" in outcome.stderr
    assert "fox" in outcome.stdout


# Without torch --------------------------------------------------------------------------------------------------------

TINY = CLIPConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=16,
    transformer_width=64,
    transformer_layers=1,
)


def test_an_exported_model_answers_without_torch_as_the_model_it_was_made_of(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from clip.exports.export import export

    torch.manual_seed(0)
    file, folder, output = tmp_path / "tiny.safetensors", tmp_path / "tiny", tmp_path / "out.npy"
    clip.save(CLIP.from_config(TINY).eval(), file)
    export(file, folder, "openvino")
    code = (
        "import json, sys\n"
        "from clip.cli.main import run\n"
        "call = ['--model', sys.argv[1], '--precision', 'fp32', '--quiet']\n"
        "first = run(['classify', *sys.argv[3:], '--labels', 'owl,fox,cat', '--json', *call])\n"
        "second = run(['encode', *sys.argv[3:], '--output', sys.argv[2], *call])\n"
        "print(json.dumps([first, second, 'torch' in sys.modules]))\n"
    )
    call = [sys.executable, "-c", code, str(folder), str(output), *PICTURES[:4]]
    home = {**os.environ, "HOME": str(tmp_path)}  # the engine keeps what it has compiled in there
    outcome = subprocess.run(call, env=home, cwd=ROOT, check=True, capture_output=True, text=True)
    *answers, end = map(json.loads, outcome.stdout.splitlines())
    assert end == [0, 0, False]
    assert outcome.stderr == ""
    assert {(answer["engine"], answer["precision"]) for answer in answers} == {("openvino", "fp32")}

    model, preprocess = clip.load(file, device="cpu")
    images = [read_image(path) for path in PICTURES[:4]]  # on the exact path, as torch-free pixels are
    stored = read_embeddings(output)
    expected = np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, images)])
    np.testing.assert_allclose(stored.embeddings, expected, atol=1e-5)
    assert stored.about["fingerprint"] == loading.fingerprint_of(folder) == loading.fingerprint_of(file)
    classified = ZeroShotClassifier(model, ["owl", "fox", "cat"], preprocess=preprocess).classify(images)
    assert [answer["label"] for answer in answers] == [answer.label for answer in classified]
