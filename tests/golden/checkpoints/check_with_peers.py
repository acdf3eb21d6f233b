"""Has OpenAI's code, OpenCLIP and transformers load files that we write, compares features, and keeps a record.

    python check_with_peers.py --reference-python PYTHON

Run it with everyclip; PYTHON is the interpreter of an environment with PyTorch, OpenAI's own ``clip`` (pip install
openai-clip), open_clip_torch and transformers, which loads each file with its own loader. Printed is the largest
difference of unit-norm features; ``peers.json`` keeps it with a digest of every file's contents, so that a test can
tell that what we write today is what was loaded then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "model"))

import seeded  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    **{name: seeded.CASES[name] for name in ("tiny ViT", "tiny ResNet", "tiny LAION")},
    "all words": {"sizes": (32, 32, 1, 64, 16, 77, 49408, 64, 1, 1)},  # for the files of the tokenizer
}
FORMATS = {
    "tiny ViT": ("openai", "openclip", "transformers"),
    "tiny ResNet": ("openai", "openclip"),
    "tiny LAION": ("openclip", "transformers"),
    "all words": ("transformers",),
}
TEXTS = ["a photo of a cat", "Two dogs, 3 birds & a fish!", "it's raining... isn't it?", "", "un café à 2€"]


def inputs(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and texts for the model of a case."""
    _, resolution, _, _, _, context, vocab, *_ = case["sizes"]
    return torch.from_numpy(seeded.images(3, resolution)), torch.from_numpy(seeded.texts(3, context, vocab))


def write(folder: Path) -> None:
    """Writes every case in every format (in our environment)."""
    import clip
    from clip.model import CLIP

    for name, case in CASES.items():
        options = {"activation": "gelu"} if case.get("gelu") else {}
        model = CLIP(*case["sizes"], vision_heads=case.get("heads", 0), vision_mlp_width=case.get("mlp", 0), **options)
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        # Numbers of half precision, because OpenAI's loader rounds weights to it.
        weights = {k: torch.from_numpy(v) for k, v in seeded.weights(shapes).items()}
        model.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in weights.items()})
        for to in FORMATS[name]:
            clip.save(model.eval(), folder / name / to, to=to)
        features = [model.encode_image(inputs(case)[0]), model.encode_text(inputs(case)[1])]
        np.savez(folder / name / "ours.npz", *(f.detach().numpy() for f in features))


def digest(path: Path) -> str:
    """Of the contents of a file or folder that we wrote: tensors and configuration, not the layout of bytes."""
    from clip.checkpoints.files import read_checkpoint

    sha256 = hashlib.sha256()
    for file in sorted([path] if path.is_file() else path.iterdir()):
        if file.suffix in (".json", ".txt"):
            sha256.update(file.read_bytes())
    state_dict = read_checkpoint(path).state_dict
    for key in sorted(state_dict):
        sha256.update(f"{key} {state_dict[key].dtype} {tuple(state_dict[key].shape)}".encode())
        sha256.update(np.ascontiguousarray(state_dict[key].numpy()).tobytes())
    return sha256.hexdigest()


def load_with_peers(folder: Path) -> dict[str, list[np.ndarray]]:
    """Features that each peer gives with its own loader (in the reference environment)."""
    import open_clip
    import transformers

    from clip.model import build_model  # OpenAI's in that environment

    results = {}
    for name, case in CASES.items():
        image, text = inputs(case)
        for to in FORMATS[name]:
            path = folder / name / to
            with torch.inference_mode():
                if to == "openai":
                    model = build_model(torch.load(path)).float()
                    features = [model.encode_image(image), model.encode_text(text)]
                elif to == "openclip":
                    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{path}")
                    features = [model.eval().encode_image(image), model.encode_text(text)]
                else:
                    model, report = transformers.CLIPModel.from_pretrained(path, output_loading_info=True)
                    assert not any(report.values()), report
                    features = [model.eval().get_image_features(image), model.get_text_features(text.long())]
                    features = [getattr(f, "pooler_output", f) for f in features]
                    transformers.CLIPImageProcessor.from_pretrained(path)
            results[f"{name}/{to}"] = [f.numpy() for f in features]
    words = transformers.CLIPTokenizer.from_pretrained(folder / "all words" / "transformers")
    results["tokens"] = [np.array(words(text)["input_ids"]) for text in TEXTS]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", required=True)
    parser.add_argument(
        "--load", type=Path, help=argparse.SUPPRESS
    )  # what the script asks of the reference environment
    arguments = parser.parse_args()
    if arguments.load:
        results = load_with_peers(arguments.load)
        np.savez(arguments.load / "peers.npz", **{f"{k}/{i}": v for k, vs in results.items() for i, v in enumerate(vs)})
        return
    import clip

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder)
        command = [
            arguments.reference_python,
            str(Path(__file__).resolve()),
            "--reference-python",
            "-",
            "--load",
            temporary,
        ]
        subprocess.run(command, check=True)
        peers = np.load(folder / "peers.npz")
        record: dict[str, Any] = {"differences": {}, "digests": {}}
        for name, formats in FORMATS.items():
            ours = [torch.from_numpy(x) for x in np.load(folder / name / "ours.npz").values()]
            for to in formats:
                theirs = [torch.from_numpy(peers[f"{name}/{to}/{i}"]) for i in range(2)]
                difference = max(
                    (torch.nn.functional.normalize(a, dim=-1) - torch.nn.functional.normalize(b, dim=-1))
                    .abs()
                    .max()
                    .item()
                    for a, b in zip(ours, theirs, strict=True)
                )
                print(f"{name:12} written for {to:13} largest difference {difference:.1e}")
                record["differences"][f"{name}/{to}"] = difference
                record["digests"][f"{name}/{to}"] = digest(folder / name / to)
        for i, text in enumerate(TEXTS):
            row = clip.tokenize(text)[0].tolist()
            own = row[: row.index(49407) + 1]
            print("tokens equal" if own == peers[f"tokens/{i}"].tolist() else "TOKENS DIFFER", repr(text))
        (HERE / "peers.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
