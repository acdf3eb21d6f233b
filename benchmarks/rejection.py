"""How often "none of these" is right: half of the names are left out, and pictures of both halves are classified.

    python benchmarks/rejection.py --data build/pocket/starter

``--data`` is the starter set of ``recipes/pocket/build_starter.py``; used are its pictures in Noto's style, which
pocket never saw. Prints, for each limit, the share of pictures rejected whose name is absent, and whose name is there.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np

from clip.evaluation.zero_shot import ZeroShotClassifier
from clip.features import encode_images
from clip.inference.loading import load_for_inference
from clip.prompts import BACKGROUND, DEFAULT_TEMPLATES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="name or checkpoint file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="draws the names that are left out")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in (arguments.data / "pairs.jsonl").open(encoding="utf-8")]
    names = sorted({record["label"] for record in records if record["style"] == "noto"})
    present = sorted(random.Random(arguments.seed).sample(names, len(names) // 2))
    chosen = [record for record in records if (record["style"], record["split"]) == ("noto", "test_style")]
    is_present = np.array([record["label"] in present for record in chosen])

    model, preprocess = load_for_inference(arguments.model)
    files = [arguments.data / record["file"] for record in chosen]
    embeddings = np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, files)])
    print(f"{len(present)} names, {int(is_present.sum())} pictures of them, {int((~is_present).sum())} of others")
    print("background  reject_below  absent  present")
    for background in ((), BACKGROUND):
        classifier = ZeroShotClassifier(model, present, DEFAULT_TEMPLATES, background=background)
        scores = classifier.scores(embeddings)
        best = scores.probabilities.max(axis=1)
        for limit in (0.0, 0.3, 0.5, 0.7, 0.9):
            is_rejected = (best < limit) | (best < scores.background)
            shares = (is_rejected[~is_present].mean(), is_rejected[is_present].mean())
            print(f"{'yes' if background else 'no':10}  {limit:12}  {shares[0]:6.1%}  {shares[1]:7.1%}")


if __name__ == "__main__":
    main()
