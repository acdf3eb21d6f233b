"""Makes openai_tiny.pt and openai_tiny_rn.pt, compiled archives in the layout that OpenAI publishes, and expected.npz.

    python make_archives.py

Needs the reference environment: PyTorch and OpenAI's own `clip` (pip install openai-clip), whose code makes the
archives, reads them back and computes the features. As in the published files, the state dict holds half-precision
matrices and three entries more, input_resolution, context_length and vocab_size.

The weights are seeded and take few distinct values, exact in half precision, so that the repository compresses them.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

import clip

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "model"))
import seeded  # noqa: E402

# embed_dim, resolution, layers, width, patch_size, context_length, vocab_size, text width, text heads, text layers
ARCHIVES = {
    "openai_tiny.pt": (32, 16, 2, 64, 4, 77, 64, 64, 1, 1),
    "openai_tiny_rn.pt": (32, 64, (1, 2, 1, 1), 2, None, 77, 64, 64, 1, 1),
}


def coarse(array: np.ndarray) -> np.ndarray:
    """The nearest multiples of a quarter of their deviation, rounded to a power of two."""
    if array.dtype != np.float32 or array.ndim < 2:
        return array.astype(np.float16).astype(array.dtype)
    step = np.float32(2.0 ** np.round(np.log2(array.std() / 2)))
    return np.round(array / step) * step


def make_model(sizes: tuple[object, ...]) -> torch.nn.Module:
    model = clip.model.CLIP(*sizes).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {key: torch.from_numpy(np.array(coarse(value))) for key, value in seeded.weights(shapes).items()}
    model.load_state_dict(weights)
    clip.model.convert_weights(model)
    return model


def write_archive(model: torch.nn.Module, images: torch.Tensor, texts: torch.Tensor, path: Path) -> None:
    for name in ("input_resolution", "context_length", "vocab_size"):
        value = model.visual.input_resolution if name == "input_resolution" else getattr(model, name)
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inputs = {"forward": (images, texts), "encode_image": images, "encode_text": texts}
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace_module(model, inputs, check_trace=False), buffer)
    # Left out: the compiler's debug tables (".debug_pkl"), which say where this script stood; nothing reads them.
    # Kept: PyTorch's alignment, by which every tensor begins at a multiple of 64 bytes.
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        assert target.fp is not None
        for entry in source.infolist():
            if entry.filename.endswith(".debug_pkl"):
                continue
            filled = -(target.fp.tell() + 30 + len(entry.filename) + 4) % 64
            entry.extra = b"FB" + filled.to_bytes(2, "little") + b"Z" * filled
            target.writestr(entry, source.read(entry))


def main() -> None:
    torch.manual_seed(0)
    expected: dict[str, np.ndarray] = {"versions": np.array([f"torch {torch.__version__}", f"numpy {np.__version__}"])}
    for name, sizes in ARCHIVES.items():
        images = torch.from_numpy(seeded.images(3, sizes[1])).half().float()  # exact in what is stored below
        texts = torch.from_numpy(seeded.texts(3, sizes[5], sizes[6]))
        write_archive(make_model(sizes), images, texts, HERE / name)

        compiled = torch.jit.load(HERE / name)
        assert {"input_resolution", "context_length", "vocab_size"} <= compiled.state_dict().keys()
        assert compiled.state_dict()["text_projection"].dtype == torch.float16
        model, _ = clip.load(str(HERE / name), device="cpu")  # OpenAI's own reader must take the file
        with torch.no_grad():
            expected[f"{name}/images"] = images.numpy().astype(np.float16)
            expected[f"{name}/texts"] = texts.numpy()
            expected[f"{name}/image_features"] = model.encode_image(images).numpy()
            expected[f"{name}/text_features"] = model.encode_text(texts).numpy()
            expected[f"{name}/logits_per_image"] = model(images, texts)[0].numpy()
        print(name, (HERE / name).stat().st_size, len(compiled.state_dict()), expected[f"{name}/logits_per_image"])
    np.savez_compressed(HERE / "expected.npz", **expected)


if __name__ == "__main__":
    main()
