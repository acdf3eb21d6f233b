"""The pictures of pocket → ``tests/golden/draw/judge.safetensors``: a witness for the test of ``clip draw``.

python recipes/draw/teach_judge.py --work build/pocket --output tests/golden/draw/judge.safetensors

A small network that knows no words: it names a picture by one of some 250 names, learned from coloured
drawings of them. It shares no weights, no architecture and no objective with what leads a drawing, only the pictures
that all of them learned from. Some five minutes on two cores. The held-out style of pocket (Noto) judges the judge.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from teach import COLOURED, _augmented, _rate, _small

from clip.guidance.recognition import rivals
from clip.guidance.sketch import COLOURS

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "e2e"))
from drawing_judge import Judge

DRAWN = ("heart", "star", "tree", "apple", "sun", "fish", "umbrella", "crescent moon", "mushroom", "cat face", "flower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    options = parser.parse_args()
    torch.manual_seed(0)
    lines = (options.work / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    images = np.load(options.work / "images.npy", mmap_mode="r")
    wanted = {*rivals(), *DRAWN}
    named = {i: _name(record["label"], wanted) for i, record in enumerate(records)}
    rows = [i for i, r in enumerate(records) if named[i] and r["split"] == "train" and r["style"] in COLOURED]
    names = sorted({str(named[i]) for i in rows})
    held = [i for i, r in enumerate(records) if r["style"] == "noto" and named[i] in names]
    pictures, answers = _small(images, rows), torch.tensor([names.index(str(named[i])) for i in rows])
    unseen, expected = _small(images, held), torch.tensor([names.index(str(named[i])) for i in held])
    judge = Judge(names).train()
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = _rate(step, options.steps, 3e-3)
        some = torch.randint(len(pictures), (128,))
        loss = F.cross_entropy(judge(_augmented(pictures[some])), answers[some], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            print(f"{step} {loss.item():.3f}", flush=True)
    judge.eval()
    with torch.no_grad():
        logits = judge(unseen[:, :3] + 1 - unseen[:, 3:])
    ranks = (logits > logits.gather(1, expected[:, None])).sum(dim=1)
    first, among_five = (ranks == 0).float().mean(), (ranks < 5).float().mean()
    print(f"{len(held)} pictures of Noto among {len(names)} names: top-1 {first:.3f}, top-5 {among_five:.3f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half() if value.is_floating_point() else value for name, value in judge.state_dict().items()}
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, options.output, {"names": "\n".join(names)}
    )


def _name(label: str, wanted: set[str]) -> str | None:
    """A label, or what is left of it without its colour."""
    first, _, rest = label.partition(" ")
    return label if label in wanted else rest if first in COLOURS and rest in wanted else None


if __name__ == "__main__":
    main()
