"""The arithmetic of a model, counted from its sizes: two operations for each multiplication and addition.

Matrix products, convolutions and attention are counted, as the reference computes them; what an engine saves, as tokens
that nobody reads, is not taken off. So a rate in FLOP/s compares engines, and a saving shows as a higher rate.
"""

from __future__ import annotations

from clip.config import CLIPConfig

__all__ = ["image_flops", "text_flops"]


def image_flops(config: CLIPConfig) -> int:
    """Of one image: 8.82e9 for ViT-B/32."""
    return _resnet(config) if config.is_resnet else _vision_transformer(config)


def text_flops(config: CLIPConfig, tokens: int | None = None) -> int:
    """Of one text of so many tokens, with its start and end; None means a full context: 5.96e9 for ViT-B/32."""
    tokens = config.context_length if tokens is None else tokens
    width, hidden = config.transformer_width, config.transformer_mlp_width
    blocks = config.transformer_layers * _block(tokens, width, hidden)
    return blocks + 2 * width * config.embed_dim


def _block(tokens: int, width: int, hidden: int) -> int:
    projections = 2 * tokens * width * (4 * width + 2 * hidden)
    return projections + 2 * 2 * tokens * tokens * width  # the scores, and the values they weigh


def _vision_transformer(config: CLIPConfig) -> int:
    assert isinstance(config.vision_layers, int) and config.vision_patch_size is not None
    patches = (config.image_resolution // config.vision_patch_size) ** 2
    width = config.vision_width
    embedding = 2 * patches * 3 * config.vision_patch_size**2 * width
    blocks = config.vision_layers * _block(patches + 1, width, config.vision_mlp_width)
    return embedding + blocks + 2 * width * config.embed_dim


def _resnet(config: CLIPConfig) -> int:
    assert isinstance(config.vision_layers, tuple)
    width, side = config.vision_width, config.image_resolution // 2
    stem = _convolution(side, 3, width // 2, 3) + _convolution(side, width // 2, width // 2, 3)
    total = stem + _convolution(side, width // 2, width, 3)
    side, channels = side // 2, width
    for stage, blocks in enumerate(config.vision_layers):
        planes = width << stage
        for block in range(blocks):
            halved = side // 2 if stage and not block else side  # averaged before the last convolution
            total += _convolution(side, channels, planes, 1) + _convolution(side, planes, planes, 3)
            total += _convolution(halved, planes, 4 * planes, 1)
            if not block:  # the way past the block
                total += _convolution(halved, channels, 4 * planes, 1)
            side, channels = halved, 4 * planes
    tokens = side * side + 1
    pool = 2 * channels * (channels + 2 * tokens * channels + config.embed_dim)  # one query, all keys and values
    return total + pool + 2 * 2 * tokens * channels


def _convolution(side: int, channels: int, filters: int, kernel: int) -> int:
    return 2 * side * side * channels * filters * kernel * kernel
