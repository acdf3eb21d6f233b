"""Teaches the text tower the sentence encoder's view of words, before and apart from any picture.

Run after ``targets.py``. Writes WORK/text.pt with the tower's weights; run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip.model import CLIP, CLIPConfig
from clip.simple_tokenizer import SimpleTokenizer

CONFIG = CLIPConfig(
    embed_dim=256,
    image_resolution=64,
    vision_layers=(2, 2, 3, 1),
    vision_width=32,
    vision_patch_size=None,
    transformer_width=192,
    transformer_layers=4,
)
"""Pocket."""
# A text in a template aims at the bare text: how it is asked for should not matter.
TEMPLATES = (
    *(
        "a {}",
        "the {}",
        "a drawing of a {}",
        "an emoji of a {}",
        "an icon of a {}",
        "a picture of a {}",
        "a photo of a {}",
    ),
    *("clip art of a {}", "a cartoon {}", "a sketch of a {}", "a black icon of a {}", "a colourful picture of a {}"),
    *("{} emoji", "{} icon", "a flat drawing of {}", "an illustration of {}", "a photograph of the {}", "this is a {}"),
)
SHARES = {"label": 0.3, "caption": 0.12, "lemma": 0.46, "composition": 0.12}
GLOSSES_EVERY = 8  # steps: they are long, and apart from the short texts nothing has to be padded
LONGEST = 40  # tokens of a text in training
TEACHER_TEMPERATURE = 0.07


def aim_loss(features: Tensor, aims: Tensor, bank: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy to the bank as the teacher sees it: near-synonyms share the probability, none is a false negative.

    features: (B, E), of any norm; aims: (B, E) and bank: (N, E), the teacher's, of unit norm. Returns a scalar.
    """
    wanted = (aims @ bank.T / TEACHER_TEMPERATURE).softmax(-1)
    logits = scale * F.normalize(features.float(), dim=-1) @ bank.T
    return -(wanted * logits.log_softmax(-1)).sum(-1).mean()


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, cooldown: float = 0.3) -> float:
    """Linear warm-up, a plateau, and a linear descent over the last ``cooldown`` of all steps.

    While it is on the plateau a run can be stopped and gone on with for more or fewer steps.
    """
    return peak * min((step + 1) / warmup, 1.0, (steps - step) / (cooldown * steps))


def optimizer(parameters: list[torch.nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only: neither gains nor biases, nor the token table, whose rare rows would fade."""
    decayed = [p for p in parameters if p.ndim >= 2 and len(p) < 10_000]
    kept = [p for p in parameters if p.ndim < 2 or len(p) >= 10_000]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)


class Texts:
    """All texts as token ids, and where the teacher puts them."""

    def __init__(self, work: Path) -> None:
        kinds: dict[str, list[str]] = json.loads((work / "texts.json").read_text())
        self.targets = torch.from_numpy(np.load(work / "targets.npy")).float()
        self.tokenizer = SimpleTokenizer()
        self.texts = [text for members in kinds.values() for text in members]
        self.index = {text: i for i, text in reversed(list(enumerate(self.texts)))}  # the first of equal ones
        ends = np.cumsum([len(members) for members in kinds.values()])
        self.ranges = {kind: (int(end) - len(kinds[kind]), int(end)) for kind, end in zip(kinds, ends, strict=True)}
        self.templates = [[self.tokenizer.encode(part) for part in template.split("{}")] for template in TEMPLATES]

    def padded(self, rows: list[int], generator: np.random.Generator | None = None) -> Tensor:
        """(len(rows), longest) ids with start and end token; half of them in a template if a generator is given."""
        texts = []
        for row in rows:
            ids = self.tokenizer.encode(self.texts[row])
            if generator is not None and generator.random() < 0.5:
                before, after = self.templates[generator.integers(len(self.templates))]
                ids = [*before, *ids, *after]
            texts.append([49406, *ids[: LONGEST - 2], 49407])
        out = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        for i, ids in enumerate(texts):
            out[i, : len(ids)] = torch.tensor(ids)
        return out

    def draw(self, count: int, generator: np.random.Generator, *, glosses: bool = False) -> list[int]:
        if glosses:
            return generator.integers(*self.ranges["gloss"], size=count // 4).tolist()
        kinds = generator.choice(list(SHARES), size=count, p=list(SHARES.values()))
        return [int(generator.integers(*self.ranges[kind])) for kind in kinds]


def part_of(state_dict: dict[str, Tensor], prefix: str, *, is_without: bool = False) -> dict[str, Tensor]:
    """The entries whose key begins with ``prefix``, or all others."""
    return {key: value for key, value in state_dict.items() if key.startswith(prefix) != is_without}


def text_parameters(model: CLIP) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"]


@torch.no_grad()
def agreement(model: CLIP, texts: Texts) -> dict[str, float]:
    """Mean cosine to the teacher by kind; for labels also how often the nearest target of all labels is the own one."""
    result = {}
    for kind, (start, end) in texts.ranges.items():
        rows = list(range(start, end, max(1, (end - start) // 500)))
        features = F.normalize(model.encode_text(texts.padded(rows)).float(), dim=-1)
        result[f"cosine/{kind}"] = round((features * texts.targets[rows]).sum(-1).mean().item(), 4)
        if kind == "label":
            nearest = (features @ texts.targets[start:end].T).argmax(-1) + start
            result["top1/label"] = round((nearest == torch.tensor(rows)).float().mean().item(), 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--steps", type=int, default=13000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    texts, checkpoint = Texts(arguments.work), arguments.work / "text.pt"
    model = CLIP.from_config(CONFIG)
    tokens = torch.from_numpy(np.load(arguments.work / "tokens.npy")).float()
    model.token_embedding.weight.data.copy_(tokens / tokens.std() * 0.05)
    adamw, first = optimizer(text_parameters(model), weight_decay=0.02), 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict({**model.state_dict(), **part_of(state["model"], "visual.", is_without=True)})
        adamw.load_state_dict(state["optimizer"])
        first = state["step"]
    scale, start = torch.tensor(1 / TEACHER_TEMPERATURE), time.time()
    for step in range(first, arguments.steps):
        generator = np.random.default_rng(step)  # by step, so that a resumed run sees what an unbroken one would
        rows = texts.draw(arguments.batch_size, generator, glosses=step % GLOSSES_EVERY == 0)
        aims = texts.targets[rows]
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, peak=2e-3)
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            features = model.encode_text(texts.padded(rows, generator))
        cosine = F.cosine_similarity(features.float(), aims).mean()
        loss = 1 - cosine + 0.2 * aim_loss(features, aims, aims, scale)
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_parameters(model), 1.0)
        adamw.step()
        if step % 250 == 249 or step == arguments.steps - 1:
            weights = part_of(model.state_dict(), "visual.", is_without=True)
            torch.save({"model": weights, "optimizer": adamw.state_dict(), "step": step + 1}, checkpoint)
            print(
                json.dumps(
                    {
                        "step": step + 1,
                        "seconds": round(time.time() - start),
                        "loss": round(loss.item(), 4),
                        "cosine/batch": round(cosine.item(), 4),
                        **agreement(model, texts),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
