"""Prompts → drawings with the settings of ``clip draw``, what two models name them, and a contact sheet.

python recipes/draw/sheet.py --names build/pocket/starter/concepts.json --judge OTHER.safetensors --output docs/images

Prompts are the twelve below, or those that are given as ``"a green frog=frog"``: what is drawn, and its name. A judge
is any other CLIP. Names are the labels of the starter set (``recipes/pocket``), or those that drawing avoids. Those
that share a word with what is drawn are left out, and its own is added: "red heart" is no wrong name of a heart.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import clip
from clip.cli.console import Session
from clip.cli.draw import command
from clip.features import encode_images, encode_texts
from clip.guidance.recognition import rivals
from clip.prompts import fill

PROMPTS = {
    "a red heart": "heart",
    "a yellow star": "star",
    "a green tree": "tree",
    "a red apple": "apple",
    "a yellow sun": "sun",
    "a blue fish": "fish",
    "a red umbrella": "umbrella",
    "a yellow crescent moon": "crescent moon",
    "a red mushroom": "mushroom",
    "an orange cat face": "cat face",
    "a pink flower": "flower",
    "a red balloon": "balloon",
}
SIDE, COLUMNS = 180, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT=NAME")
    parser.add_argument("--names", type=Path, help="concepts.json of the starter set")
    parser.add_argument("--judge", help="a checkpoint")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="drawings at a time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = list(rivals())
    if options.names:
        names = sorted({concept["label"] for concept in json.loads(options.names.read_text(encoding="utf-8")).values()})
    prompts = dict(prompt.split("=") for prompt in options.prompts) or PROMPTS
    options.output.mkdir(parents=True, exist_ok=True)

    places = [options.output / f"draw-{noun.replace(' ', '-')}" for noun in prompts.values()]
    work = [(prompt, place, options.seed) for prompt, place in zip(prompts, places, strict=True)]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as workers:
        seconds = list(workers.map(_drawn, work))
    files = [place.with_suffix(".png") for place in places]
    nouns = list(prompts.values())
    ranks = [_ranks(judge, files, nouns, names) for judge in ["pocket", *([options.judge] if options.judge else [])]]
    print(
        "| prompt | processor seconds |"
        + "".join(f" {who}: rank, best name |" for who in ("pocket", "judge")[: len(ranks)])
    )
    print("| --- | --- |" + " --- |" * len(ranks))
    for i, prompt in enumerate(prompts):
        print(f"| {prompt} | {seconds[i]:.0f} |" + "".join(f" {found[i][0]}, {found[i][1]} |" for found in ranks))
    _sheet(files, list(prompts)).save(options.output / "draw-sheet.png", optimize=True)
    for picture in files:
        picture.unlink()


def _drawn(work: tuple[str, Path, int]) -> float:
    """Runs ``clip draw``; the processor seconds that it took."""
    prompt, path, seed = work
    torch.set_num_threads(1)
    began = time.process_time()
    outputs = ["-o", str(path.with_suffix(".svg")), "-o", str(path.with_suffix(".png"))]
    status = command.main([prompt, *outputs, "--seed", str(seed)], obj=Session(quiet=True), standalone_mode=False)
    assert status == 0, (prompt, status)
    return time.process_time() - began


@torch.no_grad()
def _ranks(name: str, files: list[Path], nouns: list[str], names: list[str]) -> list[tuple[int, str]]:
    """For each picture: the place of the right name, from 1, and the name that is first."""
    model, preprocess = clip.load(name, device="cpu")
    model = model.float().eval()
    all_names = sorted({*names, *nouns})
    texts = [fill(template, text) for template in ("{}", "an emoji of a(n) {}") for text in all_names]
    rows = torch.cat([torch.from_numpy(batch.embeddings) for batch in encode_texts(model, texts)])
    embeddings = torch.nn.functional.normalize(rows.view(2, len(all_names), -1).mean(dim=0), dim=-1)
    (batch,) = encode_images(model, preprocess, [str(file) for file in files])
    found = []
    for picture, noun in zip(torch.from_numpy(batch.embeddings), nouns, strict=True):
        words = set(noun.split())
        competing = [i for i, other in enumerate(all_names) if other == noun or not words & set(other.lower().split())]
        order = (embeddings[competing] @ picture).argsort(descending=True).tolist()
        ordered = [all_names[competing[i]] for i in order]
        found.append((ordered.index(noun) + 1, ordered[0]))
    return found


def _sheet(files: list[Path], prompts: list[str]) -> Image.Image:
    rows = -(-len(files) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + 24)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (file, prompt) in enumerate(zip(files, prompts, strict=True)):
        x, y = i % COLUMNS * SIDE, i // COLUMNS * (SIDE + 24)
        with Image.open(file) as image:
            sheet.paste(image.convert("RGB").resize((SIDE - 12, SIDE - 12)), (x + 6, y + 6))
        draw.text((x + SIDE / 2, y + SIDE + 6), prompt, fill="black", anchor="mm")
    return sheet


if __name__ == "__main__":
    main()
