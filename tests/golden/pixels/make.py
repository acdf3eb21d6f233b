"""Makes reference.npz: what OpenAI's ``_transform`` and OpenCLIP's ``image_transform`` make of synthetic images.

Run it in an environment with openai-clip, open_clip_torch, torchvision and the Pillow that everyclip is tested with, as
``python make.py`` in this folder. The tests import only ``openai_cases`` and ``openclip_cases``.

reference.npz holds, per case, the grey levels (3, 16, 16) uint8, or nothing where the reference raises; ``table``, the
float32 that OpenAI's transform gives for each channel and grey level, (3, 256); and for pictures at 224 the SHA-256 of
the float32 result. Tolerance: none with the Pillow named in ``versions``; one grey level with another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SIZE = 16
SHAPES = [(16, 16), (17, 16), (16, 19), (40, 30), (31, 47), (33, 100), (101, 33), (5, 7), (1, 1), (1, 40), (40, 1)]
SHAPES += [(3, 200), (200, 3), (15, 16), (64, 48), (480, 360)]
MODES = ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"]
MODES += ["I;16", "I;16L", "I;16B", "P+index", "P+bytes", "P+RGBA", "L+level", "RGB+colour", "1+level"]
LARGE_SHAPES = [(224, 224), (640, 480), (479, 641), (1000, 333), (100, 75)]
OPENCLIP = [("squash", "bicubic"), ("squash", "bilinear"), ("shortest", "bilinear"), ("longest", "bicubic")]


def image(mode: str, width: int, height: int) -> Image.Image:
    """Waves and noise, the same for every size's seed, in one of MODES."""
    rng = np.random.default_rng([width, height])
    y, x = np.mgrid[0:height, 0:width]
    # Triangles, not sines: integers are the same on every processor.
    waves = np.stack([np.abs((x * 41 + y * (17 + 5 * k) + 90 * k) % 510 - 255) for k in range(4)], axis=-1)
    levels = np.clip(waves + rng.integers(-40, 41, waves.shape), 0, 255).astype(np.uint8)
    if mode in ("I;16", "I;16L", "I;16B"):
        samples = (levels[:, :, 0].astype("<u2") << 8 | levels[:, :, 1]).astype(">u2" if mode == "I;16B" else "<u2")
        return Image.frombytes(mode, (width, height), samples.tobytes())
    rgb, rgba = Image.fromarray(levels[:, :, :3]), Image.fromarray(levels)
    if mode in ("La", "PA"):
        return rgba.convert("LA" if mode == "La" else "P").convert(mode)
    if mode == "LA":
        return rgba.convert("LA")
    if mode in ("RGBA", "RGBa"):
        return rgba.convert(mode)
    if mode == "LAB":
        return Image.merge("LAB", rgb.split())
    if mode in ("I", "F"):
        return rgb.convert("L").convert(mode).point(lambda value: value * 1 - 20)
    base, _, transparency = mode.partition("+")
    picture = rgb.convert(base)
    if transparency == "RGBA":
        return rgba.quantize(60)
    if transparency:
        values: dict[str, Any] = {"index": 7, "bytes": bytes(range(256)), "level": 0, "colour": (9, 9, 9)}
        picture.info["transparency"] = values[transparency]
    return picture


def openai_cases() -> Iterator[tuple[str, Image.Image]]:
    for width, height in SHAPES:
        yield f"RGB {width}x{height}", image("RGB", width, height)
    for mode in MODES:
        for width, height in [(16, 16), (40, 30), (31, 47), (5, 7), (1, 20)]:
            yield f"{mode} {width}x{height}", image(mode, width, height)
    yield "flipped 41x32", ImageOps.mirror(image("RGB", 41, 32))


def large_cases() -> Iterator[tuple[str, Image.Image]]:
    for width, height in LARGE_SHAPES:
        yield f"RGB {width}x{height}", image("RGB", width, height)
    yield "P 640x480", image("P", 640, 480)


def openclip_cases() -> Iterator[tuple[str, str, str, int, Image.Image]]:
    for resize, interpolation in OPENCLIP:
        for width, height in [(16, 16), (40, 30), (31, 47), (5, 7), (90, 11), (11, 90)]:
            for mode in ("RGB", "L"):
                name = f"{resize} {interpolation} {mode} {width}x{height}"
                yield name, resize, interpolation, 77, image(mode, width, height)


def main() -> None:
    import open_clip
    import torch
    import torchvision
    from open_clip.transform import image_transform

    from clip.clip import _transform

    stored: dict[str, Any] = {}
    raising: dict[str, str] = {}
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)

    def levels(result: torch.Tensor) -> Any:
        return ((result * std[:, None, None] + mean[:, None, None]) * 255).round().to(torch.uint8).numpy()

    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1).reshape(16, 16, 3))
    table = _transform(16)(ramp).reshape(3, 256)
    for name, picture in openai_cases():
        try:
            result = _transform(SIZE)(picture)
        except Exception as error:  # noqa: BLE001 (whatever it raises is the fact to be stored)
            raising[name] = type(error).__name__
            continue
        stored["openai " + name] = levels(result)
        looked_up = np.stack([table[channel].numpy()[grey] for channel, grey in enumerate(levels(result))])
        assert np.array_equal(looked_up, result.numpy()), f"{name}: not a function of the grey level"
    for name, resize, interpolation, fill, picture in openclip_cases():
        transform = image_transform(
            SIZE, is_train=False, resize_mode=resize, interpolation=interpolation, fill_color=fill
        )
        stored["openclip " + name] = levels(transform(picture))
    hashes = {n: hashlib.sha256(_transform(224)(p).numpy().tobytes()).hexdigest() for n, p in large_cases()}
    versions = {m.__name__: m.__version__ for m in (open_clip, torch, torchvision, np)} | {"PIL": Image.__version__}
    facts = json.dumps({"versions": versions, "raising": raising, "hashes": hashes})
    np.savez_compressed(Path(__file__).parent / "reference.npz", table=table.numpy(), facts=np.array(facts), **stored)
    print(len(stored), "images;", "raising:", raising, versions)


if __name__ == "__main__":
    main()
