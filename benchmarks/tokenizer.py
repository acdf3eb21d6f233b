"""Captions per second of the tokenizer beside OpenAI's, tensor included, with equal ids.

    other/bin/python -m pip install openai-clip
    python benchmarks/tokenizer.py --reference-python other/bin/python

OpenAI's package has our import name, so it runs in an environment of its own. Each round starts a fresh process for
each of the two, one after the other; a ratio is taken within a round, and the table gives medians and the spread of
ratios. Time is that of the processor, in one thread, so that a busy machine disturbs little.

Four kinds of captions, from a seed: 7 to 14 words, of which half are everyday words.

    everyday    only those: thirty words again and again
    varied      the other half are any words of English, most of them never seen before
    rare        a fifth of all words is invented: names, misspellings
    languages   French, German, Russian, Greek, Hindi, Chinese and emoji, with quotes and entities in some

Cold: the first pass after a start, with nothing remembered. Warm: the same captions again.
"""
# ruff: noqa: SIM905  # lists of words read better as sentences

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EVERYDAY = (
    "a the of in on with and is at to an two man woman dog cat standing sitting holding red blue white black table "
    "street small large photo picture"
).split(" ")
SYLLABLES = "ka lo mi ter an shu ble ing ex pre dor vin qu oz th ra ne st".split(" ")
LANGUAGES = [
    "une photo d’un chien à côté d’un café",
    "ein schöner Hund läuft über die Straße",
    "собака бежит по улице рядом с домом",
    "ένας σκύλος τρέχει στον δρόμο",
    "एक कुत्ता सड़क पर दौड़ रहा है",
    "一只狗在街上奔跑",
    "a dog running on the beach 🐶🏖️",
    "fish &amp; chips on “the” table…",
]

WORKER = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
which, source = sys.argv[1:]
corpora = json.loads(open(source, encoding="utf-8").read())
result = {"seconds": {}, "ids": {}}
import clip.simple_tokenizer as module

started = time.process_time()
module.SimpleTokenizer().encode("a photo of a labradoodle")
result["seconds"]["load"] = time.process_time() - started
if which == "ours":
    tokenizer = module.default_tokenizer()
    memories = [tokenizer.cache, *tokenizer._known.values()]
    tokenize = lambda texts: torch.from_numpy(module.token_ids(texts, truncate=True))
else:
    import clip.clip
    tokenizer = clip.clip._tokenizer
    memories = [tokenizer.cache]
    tokenize = lambda texts: clip.clip.tokenize(texts, truncate=True)
tokenize("a labradoodle’s café, “Ünique” &amp; new")  # libraries and tables are loaded, which "load" and imports count
for name, captions in corpora.items():
    for memory in memories:
        memory.clear()
    tokenizer.cache.update({word: word for word in ("<|startoftext|>", "<|endoftext|>")})
    for temperature in ("cold", "warm"):
        started = time.process_time()
        rows = tokenize(captions)
        result["seconds"][f"{name}, {temperature}"] = time.process_time() - started
    started = time.process_time()
    for caption in captions[:500]:
        tokenize(caption)
    result["seconds"][f"{name}, warm, one at a time"] = (time.process_time() - started) * len(captions) / 500
    result["ids"][name] = rows.tolist()
print(json.dumps(result))
"""


def make_corpora(count: int) -> dict[str, list[str]]:
    from clip.simple_tokenizer import default_tokenizer

    rng = random.Random(1)
    symbols = [symbol.removesuffix("</w>") for symbol in default_tokenizer().encoder if symbol.endswith("</w>")]
    english = sorted(word for word in symbols if len(word) > 2 and word.isascii() and word.isalpha())

    def caption(varied: float, invented: float) -> str:
        words = []
        for _ in range(rng.randint(7, 14)):
            kind = rng.random()
            if kind < invented:
                words.append("".join(rng.choices(SYLLABLES, k=rng.randint(2, 5))))
            else:
                words.append(rng.choice(english if kind < invented + varied else EVERYDAY))
        return " ".join(words).capitalize() + rng.choice(["", "", ".", "!"])

    return {
        "everyday": [caption(0, 0) for _ in range(count)],
        "varied": [caption(0.5, 0) for _ in range(count)],
        "rare": [caption(0.35, 0.2) for _ in range(count)],
        "languages": [f"{rng.choice(LANGUAGES)} {rng.choice(english)}" for _ in range(count)],
    }


def run(python: str, which: str, source: Path, folder: str) -> dict[str, dict[str, float]]:
    # In an empty folder, so that no package of ours is on the reference's path.
    command = [python, "-c", WORKER, which, str(source)]
    return dict(json.loads(subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", required=True, help="Python of an environment that has OpenAI's clip")
    parser.add_argument("--captions", type=int, default=3000, help="captions of each kind (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    corpora = make_corpora(options.captions)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "corpora.json")
        source.write_text(json.dumps(corpora), encoding="utf-8")
        for _ in range(options.rounds):
            theirs = run(options.reference_python, "reference", source, folder)
            ours = run(sys.executable, "ours", source, folder)
            if ours["ids"] != theirs["ids"]:
                raise SystemExit("the ids differ: run tests/golden/tokens/compare_with_openai.py")
            rounds.append((theirs["seconds"], ours["seconds"]))

    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one thread, ids equal")
    print(f"{options.rounds} rounds of {options.captions} captions of each kind\n")
    print("| captions | OpenAI, captions/s | ours, captions/s | ratio | spread of ratios |")
    print("| --- | ---: | ---: | ---: | --- |")
    for name in rounds[0][0]:
        ratios = [theirs[name] / ours[name] for theirs, ours in rounds]
        columns = [statistics.median(seconds[name] for seconds in column) for column in zip(*rounds, strict=True)]
        if name == "load":
            shown = [f"{1000 * seconds:.0f} ms" for seconds in columns]
        else:
            shown = [f"{options.captions / seconds:,.0f}" for seconds in columns]
        print(
            f"| {name} | {' | '.join(shown)} | {statistics.median(ratios):.1f} | {min(ratios):.1f}–{max(ratios):.1f} |"
        )


if __name__ == "__main__":
    main()
