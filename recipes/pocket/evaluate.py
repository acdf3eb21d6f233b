"""What pocket knows, by the tests that its training never saw: prints a table, or JSON lines with ``--json``.

    python recipes/pocket/evaluate.py --data build/pocket/starter --photos examples/photos

``--data`` is the starter set of ``build_starter.py``. Every picture is laid on white and goes through ``preprocess``
and ``encode_image``; every label through ``clip.tokenize`` and ``encode_text`` in the three TEMPLATES. Intervals are
Wilson's, at 95 %.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import clip
from clip.model import CLIP

TEMPLATES = ("a drawing of a {}", "an emoji of a {}", "{}")
STYLES = ("twemoji", "openmoji", "fluent_flat", "noto")
# 1-NN on pixels (12×12) and HOG from the training pictures of the starter set: what no learning at all reaches.
NO_LEARNING = {("noto, seen concepts", "top-1"): 0.643, ("noto, seen concepts", "top-5"): 0.794}


class Result(NamedTuple):
    test: str
    measure: str
    hits: int
    total: int
    chance: float

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's at 95 %."""
        z, n, p = 1.96, self.total, self.hits / self.total
        middle, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)


def on_white(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


@torch.no_grad()
def image_embeddings(model: CLIP, preprocess: Callable[[Image.Image], Tensor], paths: Sequence[Path]) -> Tensor:
    """(N, E), unit norm."""
    batches = (
        torch.stack([preprocess(on_white(path)) for path in paths[i : i + 64]]) for i in range(0, len(paths), 64)
    )
    return torch.cat([F.normalize(model.encode_image(batch).float(), dim=-1) for batch in batches])


@torch.no_grad()
def text_embeddings(model: CLIP, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """(K, E), unit norm: the mean over the templates of each name's unit-norm embeddings."""
    rows = [
        F.normalize(model.encode_text(clip.tokenize([template.format(name) for name in names])).float(), dim=-1)
        for template in templates
    ]
    return F.normalize(torch.stack(rows).mean(0), dim=-1)


def top(
    test: str, similarity: Tensor, wanted: Sequence[int], ks: Sequence[int] = (1,), measure: str = "top"
) -> Iterator[Result]:
    """similarity: (Q, N); wanted: for each query the one right column."""
    right = similarity.gather(1, torch.tensor(wanted)[:, None])
    rank = (similarity > right).sum(1) + ((similarity == right).sum(1) - 1)  # ties count against us
    for k in ks:
        yield Result(test, f"{measure}-{k}", int((rank < k).sum()), len(wanted), k / similarity.shape[1])


def evaluate(model: CLIP, preprocess: Callable[[Image.Image], Tensor], data: Path, photos: Path) -> Iterator[Result]:
    records = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    concepts = json.loads((data / "concepts.json").read_text())
    held = json.loads((data / "holdout.json").read_text())["concepts"]

    def images(split: str, style: str) -> tuple[list[dict], Tensor]:
        chosen = [record for record in records if (record["split"], record["style"]) == (split, style)]
        return chosen, image_embeddings(model, preprocess, [data / record["file"] for record in chosen])

    # a. A style that no training picture had.
    names = sorted({record["label"] for record in records if record["style"] == "noto"})
    labels = text_embeddings(model, names)
    chosen, embeddings = images("test_style", "noto")
    wanted = [names.index(record["label"]) for record in chosen]
    yield from top("noto, seen concepts", embeddings @ labels.T, wanted, (1, 5))
    yield from top(
        "noto, seen concepts, text to image", labels[wanted] @ embeddings.T, range(len(wanted)), (1, 5, 10), "R"
    )

    # b. Concepts that no training picture showed.
    codes = sorted(held)
    bare = text_embeddings(model, [held[code] for code in codes])
    full = text_embeddings(model, [", ".join([held[code], *concepts[code]["keywords"][:4]]) for code in codes])
    kinds = sorted({concept["subcategory"] for concept in concepts.values()})
    kind_labels = text_embeddings(model, [kind.replace("-", " ") for kind in kinds])
    held_records, parts = [], []
    for style in STYLES:
        chosen, embeddings = images("test_style_and_concept" if style == "noto" else "test_concept", style)
        held_records += chosen
        parts.append(embeddings)
    embeddings, wanted = torch.cat(parts), [codes.index(record["concept"]) for record in held_records]
    yield from top("unseen concepts, bare label", embeddings @ bare.T, wanted, (1, 5))
    yield from top("unseen concepts, label and keywords", embeddings @ full.T, wanted, (1, 5))
    own_kind = [kinds.index(record["subcategory"]) for record in held_records]
    yield from top("unseen concepts, subcategory", embeddings @ kind_labels.T, own_kind, (1, 5))

    # c. Photographs, which pocket is not for.
    rows = list(csv.DictReader((photos / "labels.csv").open()))
    embeddings = image_embeddings(model, preprocess, [photos / row["file"] for row in rows])
    for key, templates in (("caption", ("{}",)), ("label", ("a photo of a {}",))):
        texts = text_embeddings(model, [row[key] for row in rows], templates)
        yield from top(f"photographs, {key}", embeddings @ texts.T, range(len(rows)))

    # d. Clip art by its title.
    chosen, embeddings = images("test_retrieval", "clipart")
    texts = text_embeddings(model, [record["label"] for record in chosen], ("{}",))
    yield from top("clip art, text to image", texts @ embeddings.T, range(len(chosen)), (1, 5, 10), "R")
    yield from top("clip art, image to text", embeddings @ texts.T, range(len(chosen)), (1, 5, 10), "R")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="name or checkpoint file")
    parser.add_argument("--data", type=Path, default=Path("build/pocket/starter"))
    parser.add_argument("--photos", type=Path, default=Path("examples/photos"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model, preprocess = clip.load(arguments.model, device="cpu")
    for result in evaluate(model.eval(), preprocess, arguments.data, arguments.photos):
        share, (low, high) = result.hits / result.total, result.interval
        if arguments.json:
            fields = {"test": result.test, "measure": result.measure, "value": round(share, 4), "total": result.total}
            print(
                json.dumps({**fields, "interval": [round(low, 4), round(high, 4)], "chance": round(result.chance, 4)})
            )
            continue
        anchor = NO_LEARNING.get((result.test, result.measure))
        print(
            f"{result.test:36} {result.measure:6} {share:.3f}  [{low:.3f}, {high:.3f}]  {result.hits:3} of "
            f"{result.total:3}  chance {result.chance:.4f}" + (f"  no learning {anchor}" if anchor else "")
        )


if __name__ == "__main__":
    main()
