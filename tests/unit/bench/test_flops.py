"""Operations counted by hand, and by torch where it counts them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clip.bench.flops import image_flops, text_flops
from clip.config import ARCHITECTURES
from clip.model import CLIP

B32 = ARCHITECTURES["ViT-B/32"]


def test_an_image_of_vit_b_32_counted_by_hand() -> None:
    patches = 2 * 49 * (3 * 32 * 32) * 768
    projections = 2 * 50 * 768 * (3 * 768 + 768 + 4 * 768 + 4 * 768)
    attention = 2 * 50 * 50 * 768 + 2 * 50 * 50 * 768
    assert image_flops(B32) == patches + 12 * (projections + attention) + 2 * 768 * 512
    assert round(image_flops(B32) / 1e9, 2) == 8.82


def test_a_text_of_vit_b_32_counted_by_hand() -> None:
    def by_hand(tokens: int) -> int:
        return 12 * (2 * tokens * 512 * 12 * 512 + 2 * 2 * tokens * tokens * 512) + 2 * 512 * 512

    assert text_flops(B32) == text_flops(B32, 77) == by_hand(77)
    assert text_flops(B32, 9) == by_hand(9)
    assert round(text_flops(B32) / 1e9, 2) == 5.96


@pytest.mark.parametrize("name", ["RN50", "RN50x4"])
def test_a_resnet_is_what_torch_counts(name: str) -> None:
    config = ARCHITECTURES[name]
    with torch.device("meta"):
        model = CLIP.from_config(config).eval()
        pixels = torch.empty(1, 3, config.image_resolution, config.image_resolution)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_image(pixels)
    width, tokens = 32 * config.vision_width, (config.image_resolution // 32) ** 2 + 1
    attention = 2 * 2 * tokens * width  # one query: torch counts no fused attention
    assert image_flops(config) - counter.get_total_flops() in (0, attention)


def test_an_mlp_of_another_width_counts() -> None:
    config = ARCHITECTURES["ViT-H-14"]
    assert image_flops(config) / 1e9 == pytest.approx(335, rel=0.01)  # 2 × 167.4 G of OpenCLIP's table
