"""OpenAI's face: the signatures, types, errors and habits that code written for OpenAI's package relies on."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import clip
from clip import clip as face
from clip.errors import CheckpointError, ClipError, ConfigError, ModelNotFoundError
from clip.model import CLIP, convert_weights
from clip.preprocess import Preprocess

ARCHIVE = Path(__file__).parents[1] / "golden" / "checkpoints" / "openai_tiny.pt"
OPENAI_NAMES = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]


@pytest.fixture
def saved(tmp_path: Path, tiny_vit: CLIP) -> Path:
    clip.save(tiny_vit, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_signatures_begin_with_openais_parameters() -> None:
    assert list(inspect.signature(clip.load).parameters)[:4] == ["name", "device", "jit", "download_root"]
    assert list(inspect.signature(clip.tokenize).parameters)[:3] == ["texts", "context_length", "truncate"]
    assert inspect.signature(clip.tokenize).parameters["context_length"].default == 77


def test_available_models_are_openais_in_their_order_and_pocket() -> None:
    assert clip.available_models() == [*OPENAI_NAMES, "pocket"]


@pytest.mark.parametrize("device", [None, "cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_every_spelling_of_cpu_gives_fp32(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, preprocess = clip.load(str(ARCHIVE), device=device)  # stored in half precision
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.dtype == torch.float32
    assert not model.training
    assert preprocess(Image.new("RGB", (20, 30))).shape == (3, 16, 16)


def test_precision_is_what_was_asked_for(saved: Path) -> None:
    model, _ = clip.load(saved, device="cpu", precision="bf16")
    assert model.dtype == torch.bfloat16
    assert model.ln_final.weight.dtype == torch.float32
    images, texts = torch.randn(2, 3, 32, 32), clip.tokenize(["a", "b", "c"])
    exact, _ = clip.load(saved, device="cpu", precision="fp32")
    with torch.inference_mode():
        logits, transposed = model(images, texts)
        reference, _ = exact(images, texts)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, transposed.t())
    assert (logits - reference).abs().max() < 0.02 * exact.logit_scale.exp()  # two hundredths of cosine
    with pytest.raises(ConfigError, match="precision is 'int8'; it must be one of"):
        clip.load(saved, precision="int8")  # type: ignore[arg-type]


def test_jit_is_said_to_have_no_effect(saved: Path) -> None:
    with pytest.warns(UserWarning, match="jit=True has no effect"):
        model, _ = clip.load(saved, jit=True)
    assert isinstance(model, CLIP)


def test_training_what_was_loaded_leaves_the_file_alone(saved: Path) -> None:
    before = saved.read_bytes()
    model, _ = clip.load(saved)
    loss = model(torch.randn(2, 3, 32, 32), clip.tokenize(["a", "b"]))[0].diagonal().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "closest"), [("ViT-B/33", "ViT-B/32"), ("vit-b/32", "ViT-B/"), ("RN51", "RN50"), ("pockets", "pocket")]
)
def test_unknown_names_list_the_known_ones_the_closest_first(name: str, closest: str) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"available models: {closest}.*RN50x64") as caught:
        clip.load(name)
    assert isinstance(caught.value, RuntimeError)  # what OpenAI's load raises
    assert isinstance(caught.value, ClipError)


@pytest.mark.parametrize("name", ["", "no/such/path.pt", "\0", "x" * 5000, "./missing.pt"])
def test_odd_names_are_not_found(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        clip.load(name)


def test_models_that_users_add_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ARCHIVE, tmp_path / "mine.pt")
    monkeypatch.setitem(face._MODELS, "mine", "https://example.org/mine.pt")
    assert "mine" in clip.available_models()
    model, _ = clip.load("mine", download_root=tmp_path)
    assert model.vocab_size == 64
    # ... and when the whole table is replaced, as some do
    monkeypatch.setattr(face, "_MODELS", {"other": "https://example.org/mine.pt"})
    assert clip.available_models() == ["other", "pocket"]
    clip.load("other", download_root=tmp_path)


def test_download_takes_the_hash_from_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERYCLIP_OFFLINE", "1")
    shutil.copy(ARCHIVE, tmp_path / "ViT-B-32.pt")
    with pytest.raises(CheckpointError, match="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"):
        clip.load("ViT-B/32", download_root=tmp_path)


def test_private_names_work_as_in_openais_module() -> None:
    assert face._transform(224) == Preprocess(size=224)
    assert face._tokenizer.encode("hello world") == [3306, 1002]
    with pytest.raises(AttributeError):
        _ = face._nonsense


def test_tokenize_gives_int32_and_neutralises_special_words_where_asked() -> None:
    tokens = clip.tokenize(["hello world", "a<|endoftext|>b"])
    assert tokens.dtype == torch.int32
    assert tokens[0, :5].tolist() == [49406, 3306, 1002, 49407, 0]
    assert (tokens[1] == 49407).sum() == 2
    assert (clip.tokenize("a<|endoftext|>b", special_words=False) == 49407).sum() == 1


def test_half_precision_rules_are_openais(tiny_vit: CLIP) -> None:
    convert_weights(tiny_vit)
    kept = {name for name, p in tiny_vit.named_parameters() if p.dtype == torch.float32}
    assert all("ln_" in name or "embedding" in name or name == "logit_scale" for name in kept)
    assert tiny_vit.text_projection.dtype == torch.float16
