"""Values and gradients of OpenCLIP's ``ClipLoss`` and ``SigLipLoss``, in fp32 on one thread.

    reference/bin/python -m pip install open_clip_torch numpy
    reference/bin/python tests/golden/losses/make_goldens.py

Writes ``goldens.npz`` beside itself: by case the embeddings, the scalars, the value and all gradients.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

ROWS, WIDTH = 21, 16
# logit_scale and logit_bias: as at the start, at the end and beyond, of each loss.
CASES = {
    "softmax/start": (1 / 0.07, None),
    "softmax/clamped": (100.0, None),
    "sigmoid/start": (10.0, -10.0),
    "sigmoid/small": (5.0, -1.5),
    "sigmoid/clamped": (100.0, -16.5),
}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arrays: dict[str, np.ndarray] = {
        "versions": np.array(f"open_clip {open_clip.__version__}, torch {torch.__version__}")
    }
    for case, (scale, bias) in CASES.items():
        texts = F.normalize(torch.randn(ROWS, WIDTH), dim=-1)
        images = F.normalize(texts + 0.2 * torch.randn(ROWS, WIDTH), dim=-1)  # of one meaning, mostly
        inputs = {"images": images, "texts": texts, "scale": torch.tensor(scale)}
        if bias is not None:
            inputs["bias"] = torch.tensor(bias)
        for tensor in inputs.values():
            tensor.requires_grad_()
        loss = ClipLoss() if bias is None else SigLipLoss()
        value = loss(*inputs.values())
        value.backward()
        arrays[f"{case}/value"] = value.detach().numpy()
        for name, tensor in inputs.items():
            arrays[f"{case}/{name}"] = tensor.detach().numpy()
            arrays[f"{case}/{name}.grad"] = tensor.grad.numpy()
    np.savez_compressed(Path(__file__).parent / "goldens.npz", **arrays)


if __name__ == "__main__":
    main()
