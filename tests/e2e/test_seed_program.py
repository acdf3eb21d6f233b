"""The program from the first page of OpenAI's README runs as it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip
from clip.model import CLIP

POCKET = Path(clip.__path__[0]) / "pocket.safetensors"

PROGRAM = """
import torch
import clip
from PIL import Image

device = "cuda" if torch.cuda.is_available() else "cpu"
model, preprocess = clip.load(NAME, device=device)

image = preprocess(Image.open(path)).unsqueeze(0).to(device)
text_tokens = clip.tokenize(["a diagram", "a dog", "a cat"]).to(device)

with torch.no_grad():
    image_features = model.encode_image(image)
    text_features = model.encode_text(text_tokens)

    logits_per_image, logits_per_text = model(image, text_tokens)
    probs = logits_per_image.softmax(dim=-1).cpu().numpy()

print("Label probs:", probs)
"""


def test_the_program_runs_on_a_checkpoint_of_a_vit(
    tiny_vit: CLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip.save(tiny_vit, tmp_path / "ViT.pt", to="openai")
    check_program(str(tmp_path / "ViT.pt"), tmp_path, capsys)


def test_the_program_runs_on_a_checkpoint_of_a_resnet(
    tiny_resnet: CLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip.save(tiny_resnet, tmp_path / "RN.pt", to="openai")
    check_program(str(tmp_path / "RN.pt"), tmp_path, capsys)


@pytest.mark.skipif(not POCKET.exists(), reason="pocket is not in this checkout")
def test_the_program_runs_on_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_program("pocket", tmp_path, capsys)


def check_program(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "CLIP.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 4), dtype=np.uint8), "RGBA").save(path)
    variables = {"NAME": name, "path": str(path)}
    exec(compile(PROGRAM, "README.md", "exec"), variables)
    assert capsys.readouterr().out.startswith("Label probs: [[")
    probs, image_features, text_features = (variables[key] for key in ("probs", "image_features", "text_features"))
    assert isinstance(probs, np.ndarray)
    assert probs.shape == (1, 3)
    assert probs.sum() == pytest.approx(1)
    model = variables["model"]
    assert image_features.shape == (1, model.config.embed_dim)
    assert text_features.shape == (3, model.config.embed_dim)
    torch.testing.assert_close(variables["logits_per_text"], variables["logits_per_image"].t())
    # The logits are what the features say: cosines at the model's scale.
    cosines = torch.nn.functional.cosine_similarity(image_features.float(), text_features.float())
    expected = (model.logit_scale.exp() * cosines).unsqueeze(0)
    torch.testing.assert_close(variables["logits_per_image"], expected.detach(), atol=1e-3, rtol=1e-4)
