"""The text tower in NumPy: the embeddings of the tower of torch, from every file that it reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import clip
from clip.checkpoints.files import Checkpoint, read_checkpoint, write_checkpoint
from clip.config import CLIPConfig
from clip.errors import ConfigError, ShapeError, TextTooLongError
from clip.features import encode_texts, normalized
from clip.inference import numpy_text
from clip.inference.numpy_text import NumpyText
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.simple_tokenizer import token_ids

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoints"

TOLERANCE = 2e-6
"""Of unit vectors, in each number: the towers add up in another order."""

TEXTS = [
    "a dog",
    "",
    "a photograph of two dogs that run along a beach at sunset, seen from far away",
    "word " * 75,
    "the end <|endoftext|> is not the end",
    "¿Qué? Ein Käse — 日本語 🐶",
    "A DOG",
    "1234 5678 #!?",
]

VIT = CLIPConfig(
    embed_dim=24,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=16,
    transformer_width=32,
    transformer_heads=4,
    transformer_layers=3,
)
CONFIGS = {
    "one head": dataclasses.replace(VIT, transformer_heads=1),
    "gelu": dataclasses.replace(VIT, activation="gelu"),
    "narrow": dataclasses.replace(VIT, transformer_mlp_width=40, transformer_layers=1, embed_dim=7),
    "bias": dataclasses.replace(VIT, logit_bias=True),
    "resnet": dataclasses.replace(
        VIT, vision_layers=(1, 1, 1, 1), vision_patch_size=None, vision_heads=2, vision_width=4, vision_mlp_width=0
    ),
}


def _model(config: CLIPConfig) -> CLIP:
    """Of random weights, none of which can be left out or mixed up without being seen."""
    model = CLIP.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("visual", "logit")):
                width = parameter.shape[-1]
                mean = 1 if "ln_" in name and name.endswith("weight") else 0
                parameter.normal_(mean, 0.2 if parameter.ndim == 1 else width**-0.5)
    return model


def _written(model: CLIP, path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    preprocess = Preprocess(size=model.config.image_resolution)
    checkpoint = Checkpoint(config=model.config, state_dict=weights, preprocess=preprocess, source="")
    write_checkpoint(checkpoint, path, **options)
    return path


def _embeddings(model: Any, texts: list[str], **options: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([batch.embeddings for batch in encode_texts(model, texts, **options)])


def _assert_same_embeddings(path: str | Path, texts: list[str] = TEXTS) -> None:
    tower = NumpyText.open(path)
    assert tower is not None
    model, _ = clip.load(path, device="cpu")
    np.testing.assert_allclose(_embeddings(tower, texts), _embeddings(model, texts), rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return _written(_model(VIT), tmp_path_factory.mktemp("numpy_text") / "model.safetensors")


# The same embeddings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_gives_the_embeddings_of_torch_in_fp32(config: CLIPConfig, tmp_path: Path) -> None:
    _assert_same_embeddings(_written(_model(config), tmp_path / "model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    _assert_same_embeddings(_written(_model(VIT), tmp_path / "model.safetensors", dtype))


def test_the_bundled_model_with_its_table_of_tokens_in_8_bits() -> None:
    _assert_same_embeddings("pocket")


@pytest.mark.parametrize("count", range(1, 9))
def test_a_text_has_the_same_embedding_in_any_company(file: Path, count: int) -> None:
    tower = NumpyText.open(file)
    assert tower is not None
    alone = [tower.encode_text(token_ids(text, special_words=False))[0] for text in TEXTS[:count]]
    together = tower.encode_text(token_ids(TEXTS[:count], special_words=False))
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module.", "text."])
def test_plain_safetensors_of_openai_s_and_openclip_s_names(tmp_path: Path, prefix: str) -> None:
    weights = _model(VIT).state_dict()
    if prefix == "text.":  # OpenCLIP's custom text tower
        renamed = {k if k.startswith(("visual", "logit")) else prefix + k: v for k, v in weights.items()}
    else:
        renamed = {prefix + key: value for key, value in weights.items()}
    save_file(renamed, tmp_path / "tiny-quickgelu.safetensors")
    _assert_same_embeddings(tmp_path / "tiny-quickgelu.safetensors")


def test_a_folder_of_openclip(tmp_path: Path) -> None:
    config = dataclasses.replace(VIT, activation="gelu", transformer_heads=2)
    _assert_same_embeddings(_written(_model(config), tmp_path / "folder", to="openclip"))


def test_an_archive_of_torch(tmp_path: Path) -> None:
    config = dataclasses.replace(VIT, transformer_heads=0)  # the only ones that OpenAI's format holds
    _assert_same_embeddings(_written(_model(config), tmp_path / "state.pt", torch.float16, to="openai"))


@pytest.mark.parametrize("name", ["openai_tiny.pt", "openai_tiny_rn.pt"])
def test_an_archive_of_openai_gives_the_embeddings_of_openai_s_code(name: str) -> None:
    tower, expected = NumpyText.open(GOLDEN / name), np.load(GOLDEN / "expected.npz")
    assert tower is not None
    features = [normalized(tower.encode_text(expected[f"{name}/texts"])), expected[f"{name}/text_features"]]
    np.testing.assert_allclose(features[0], normalized(features[1]), rtol=0, atol=TOLERANCE)


def test_a_download_of_openai_s_that_is_there_is_read_and_another_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (GOLDEN / "openai_tiny.pt").read_bytes()
    url = f"https://host.invalid/clip/models/{hashlib.sha256(data).hexdigest()}/tiny.pt"
    monkeypatch.setitem(clip.clip._MODELS, "tiny", url)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert NumpyText.open("tiny") is None
    folder = tmp_path / ".cache" / "clip"
    folder.mkdir(parents=True)
    (folder / "tiny.pt").write_bytes(data)
    assert NumpyText.open("tiny") is not None
    (folder / "tiny.pt").write_bytes(data[:-1] + b"x")
    assert NumpyText.open("tiny") is None


def test_an_activation_that_is_assumed_is_told_and_can_be_chosen(tmp_path: Path) -> None:
    save_file(_model(VIT).state_dict(), tmp_path / "tiny.safetensors")
    with pytest.warns(UserWarning, match="'quick_gelu' is assumed"):
        assumed = NumpyText.open(tmp_path / "tiny.safetensors")
    chosen = NumpyText.open(tmp_path / "tiny.safetensors", activation="gelu")
    assert assumed is not None and chosen is not None
    assert (assumed.config.activation, chosen.config.activation) == ("quick_gelu", "gelu")
    assert np.abs(_embeddings(assumed, ["a dog"]) - _embeddings(chosen, ["a dog"])).max() > 1e-4


def test_gelu_is_exact_to_rounding() -> None:
    x = np.concatenate([np.linspace(-9, 9, 100_001), [0, -100, 100, 1e30, -1e30]]).astype(np.float32)
    exact = [value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()]
    error = np.abs(numpy_text._gelu(x) - exact)
    assert (error <= 2**-23 * np.maximum(1.5, np.abs(x))).all()


def test_quick_gelu_of_any_size_warns_of_nothing() -> None:
    x = np.array([-1e30, -1000, 0, 1000, 1e30], np.float32)
    assert numpy_text._quick_gelu(x).tolist() == [0, 0, 0, 1000, x[-1]]


# Rules ----------------------------------------------------------------------------------------------------------------


def test_a_text_that_is_too_long_is_told_and_can_be_cut(file: Path) -> None:
    tower, (model, _) = NumpyText.open(file), clip.load(file, device="cpu")
    assert tower is not None
    with pytest.raises(TextTooLongError, match=r"text 1 .* has 82 tokens"):
        _embeddings(tower, ["a dog", "word " * 80])
    texts = ["word " * 80]
    expected = _embeddings(model, texts, truncate=True)
    np.testing.assert_allclose(_embeddings(tower, texts, truncate=True), expected, rtol=0, atol=TOLERANCE)


def test_what_is_no_batch_of_ids_is_refused(file: Path) -> None:
    tower = NumpyText.open(file)
    assert tower is not None
    assert tower.encode_text(np.empty((0, 77), np.int32)).shape == (0, 24)
    for wrong in (np.zeros(77, np.int32), np.zeros((1, 78), np.int32), np.zeros((1, 0), np.int32), np.zeros((1, 77))):
        with pytest.raises(ShapeError, match="are expected"):
            tower.encode_text(wrong)
    for outside in (-1, 49408):
        with pytest.raises(ConfigError, match="the model knows 0 to 49407"):
            tower.encode_text(np.full((1, 5), outside))


# What it leaves to torch ----------------------------------------------------------------------------------------------


def _cut(weights: dict[str, torch.Tensor]) -> None:
    weights["ln_final.bias"] = weights["ln_final.bias"][:-1]


def _short_of_one(weights: dict[str, torch.Tensor]) -> None:
    del weights["transformer.resblocks.1.mlp.c_proj.bias"]


def _of_integers(weights: dict[str, torch.Tensor]) -> None:
    weights["text_projection"] = weights["text_projection"].to(torch.int64)


def _of_no_clip(weights: dict[str, torch.Tensor]) -> None:
    weights.clear()
    weights["weight"] = torch.zeros(3)


@pytest.mark.parametrize("spoil", [_cut, _short_of_one, _of_integers, _of_no_clip])
def test_a_checkpoint_that_is_not_whole_is_left_to_the_reader_that_says_why(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    weights = _model(VIT).state_dict()
    spoil(weights)
    save_file(weights, tmp_path / "quickgelu.safetensors")
    assert NumpyText.open(tmp_path / "quickgelu.safetensors") is None


def test_other_formats_are_left_to_torch(tmp_path: Path) -> None:
    assert NumpyText.open(_written(_model(VIT), tmp_path / "folder", to="transformers")) is None


@pytest.mark.parametrize("name", ["ViT-B/32", "openai/clip-vit-base-patch32", "no such model", "nul\0", "."])
def test_what_is_no_file_of_weights_is_none_and_nothing_is_fetched(name: str) -> None:
    assert NumpyText.open(name) is None


def test_a_file_of_ours_with_another_tokenizer_is_left_to_torch(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    other = data.replace(b'"openai-bpe-49408"', b'"somebody-s-49408"')
    assert other != data
    (tmp_path / "other.safetensors").write_bytes(other)
    assert NumpyText.open(tmp_path / "other.safetensors") is None


# Without torch --------------------------------------------------------------------------------------------------------


def test_a_query_imports_neither_torch_nor_what_it_does_not_need(file: Path) -> None:
    code = """
import json, sys
from clip.features import encode_texts
from clip.inference.loading import fingerprint_of
from clip.inference.numpy_text import NumpyText
tower = NumpyText.open(sys.argv[1])
(batch,) = encode_texts(tower, ["a dog"])
print(json.dumps([batch.embeddings.shape, fingerprint_of(sys.argv[1]), sorted(sys.modules)]))
"""
    command = [sys.executable, "-c", code, str(file)]
    shape, found, modules = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert shape == [1, VIT.embed_dim]
    needless = {"torch", "PIL", "simplejpeg", "regex", "ftfy", "safetensors", "rich", "numpy.ma", "subprocess"}
    assert not needless & set(modules)
    checkpoint = read_checkpoint(file)
    assert found == clip.checkpoints.files.fingerprint(checkpoint.config, checkpoint.state_dict)
