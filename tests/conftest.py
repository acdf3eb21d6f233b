"""Fixtures that several folders of tests use: tiny models that are built in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from clip.model import CLIP, CLIPConfig

TINY_VIT = CLIPConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=16,
    transformer_width=64,
    transformer_layers=2,
)
TINY_RESNET = CLIPConfig(
    embed_dim=16,
    image_resolution=64,
    vision_layers=(1, 1, 1, 1),
    vision_width=8,
    vision_patch_size=None,
    transformer_width=64,
    transformer_layers=1,
)


@pytest.fixture(autouse=True, scope="session")
def _a_home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Downloads and compiled graphs of tests do not go among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _one_thread_one_seed() -> Iterator[None]:
    torch.set_num_threads(1)  # the tests are too small to share, and the machine may be busy
    torch.manual_seed(0)
    yield


@pytest.fixture
def tiny_vit() -> CLIP:
    return CLIP.from_config(TINY_VIT).eval()


@pytest.fixture
def tiny_resnet() -> CLIP:
    return CLIP.from_config(TINY_RESNET).eval()
