"""10,000 random mutations of small valid files: a model or a CheckpointError, quickly and within little memory."""

from __future__ import annotations

import random
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import clip
from clip.checkpoints.files import read_checkpoint
from clip.errors import CheckpointError
from clip.model import CLIP, CLIPConfig

ROUNDS = 2_000
SMALLEST = CLIPConfig(
    embed_dim=4,
    image_resolution=4,
    vision_layers=1,
    vision_width=4,
    vision_patch_size=2,
    vision_heads=1,
    context_length=4,
    vocab_size=8,
    transformer_width=4,
    transformer_layers=1,
)
MEMORY_LIMIT_BYTES = 1 << 30  # of growth; the files have 5 to 15 kB


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("valid")
    torch.manual_seed(0)
    model = CLIP.from_config(SMALLEST).eval()
    clip.save(model, folder / "everyclip")
    clip.save(model, folder / "openai", to="openai")
    torch.save({"epoch": 1, "state_dict": model.state_dict(), "optimizer": {"lr": 0.1}}, folder / "training")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; files of it will be around for long
        script = torch.jit.trace(model, (torch.zeros(1, 3, 4, 4), torch.tensor([[1, 7, 0]])))
        torch.jit.save(script, str(folder / "torchscript"))
    clip.save(model, folder / "hf", to="transformers")
    (folder / "transformers").write_bytes((folder / "hf" / "model.safetensors").read_bytes())
    names = ("everyclip", "openai", "training", "torchscript", "transformers")
    return {name: (folder / name).read_bytes() for name in names}


def _mutations(data: bytes, rng: random.Random) -> Iterator[bytes]:
    while True:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
            size = len(changed)
            # Structure stands at the start of safetensors, and everywhere in a zip.
            at = rng.randrange(size if rng.random() < 0.5 else min(size, 4000))
            kind = rng.randrange(6)
            if kind == 0:
                changed[at] = rng.randrange(256)
            elif kind == 1:
                changed[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                del changed[at : at + rng.choice([1, 4, 100, 10_000])]
            elif kind == 3:
                changed[at:at] = rng.randbytes(rng.choice([1, 4, 40]))
            elif kind == 4:
                length, other = rng.choice([1, 8, 64]), rng.randrange(size)
                changed[at : at + length] = changed[other : other + length]
            else:
                changed[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f"])
            changed = changed or bytearray(b"x")
        yield bytes(changed)


@pytest.mark.filterwarnings("ignore:the weights do not tell their activation")
@pytest.mark.parametrize("name", ["everyclip", "openai", "training", "torchscript", "transformers"])
def test_mutated_files_give_a_model_or_an_error(name: str, valid_files: dict[str, bytes], tmp_path: Path) -> None:
    mutations = _mutations(valid_files[name], random.Random(name))
    path = tmp_path / name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(ROUNDS):
        path.unlink(missing_ok=True)  # a new file each time: tensors may still map the old one
        path.write_bytes(next(mutations))
        try:
            model = read_checkpoint(path).build()
        except CheckpointError as error:
            refused += 1
            assert len(str(error)) > len(str(path))
        else:
            assert sum(parameter.numel() for parameter in model.parameters()) < 10_000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY_LIMIT_BYTES
    assert ROUNDS / 4 < refused < ROUNDS
