"""Draws the pictures of the evaluation and writes their labels, from names alone: three sets under WORK/moderation.

    python recipes/moderation/pictures.py --work build/pocket

Run after ``recipes/pocket/fetch.sh``, ``build_starter.py`` and ``corpus.py``, which say what pocket was trained on.
``names.csv`` says which names belong to a category, which are left out because people would differ, and which
negatives are hard. It was written before any picture had a score.

    noto      Noto Emoji, both styles: drawings of a kind that pocket never saw. The test.
    clipart   Open Clip Art that pocket was not trained on, of a kind that it was. The second test.
    icons     icons that pocket was not trained on, often variants of such that it was. Thresholds are chosen here.

Each becomes SET/NAME.png, 128 pixels on white, and SET.csv: path,categories,name,hard (semicolons between names), which
``clip moderate --fit`` reads, too.
"""

from __future__ import annotations

import argparse
import collections
import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import resvg_py
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "pocket"))

from corpus import SKIPPED_CATEGORIES, STYLE_PREFIX, STYLE_SUFFIX, svg_of  # noqa: E402

SIDE = 128
PER_NAME = 8  # of icons: "dice" comes in 265 drawings
ORDINARY_ICONS, ORDINARY_CLIPART = 2000, 600  # negatives drawn by their hash, beside the hard ones
# Nobody looked at these one by one, so whatever a name hints at is left out of the ordinary negatives.
HINTS = re.compile(
    r"gun|pistol|rifle|shot(?!-?put)|sword|sabre|saber|blade|dagger|kni(fe|ves)|grenade|bomb|cannon|arrow|bow|bullet|ammo|"
    r"weapon|missile|torpedo|rocket|tank|army|military|soldier|warrior|knight|samurai|ninja|pirate|archer|hunt|fight|"
    r"battle|war|axe|spear|lance|mace|flail|trident|shuriken|dynamite|explo|mine|tnt|beer|wine|whisk|vodka|rum|gin|"
    r"cocktail|martini|champagne|liquor|alcohol|bottle|barrel|drink|glass|cup|mug|goblet|bar\b|pub|party|toast|cheers|"
    r"corkscrew|brew|keg|cigar|smok|tobacco|pipe|ash|hookah|vap|joint|casino|slot|roulette|poker|dice|die\b|card|joker|"
    r"lotter|gambl|bet|domino|mahjong|spade|club|suit|chip|syring|needle|inject|vaccin|doctor|nurse|medic|blood|toxic"
)
PEOPLE_AND_VARIANTS = re.compile(
    r"skin|-(light|dark|medium)|tone\d|(^|-)flag|^(man|woman|men|women|person)-|keycap|o-?clock|thirty"
)


class Names(NamedTuple):
    """What ``names.csv`` says of one name."""

    belongs: frozenset[str]
    unclear: frozenset[str]
    hard: frozenset[str]


class Drawing(NamedTuple):
    key: str
    """Of the file."""
    name: str
    svg: str
    belongs: frozenset[str]
    hard: frozenset[str]


def read_names() -> dict[str, dict[str, Names]]:
    """By set and name."""
    found: dict[tuple[str, str, str], set[str]] = collections.defaultdict(set)
    with (HERE / "names.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            for name in row["names"].split(";"):
                found[row["set"], name, row["label"]].add(row["category"])
    return {
        kind: {
            name: Names(*(frozenset(found[kind, name, label]) for label in ("yes", "unclear", "no")))
            for name in sorted({name for one, name, _ in list(found) if one == kind})
        }
        for kind in ("emoji", "icon", "clipart")
    }


def rank(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stem(name: str) -> str:
    """The name of an icon without its style."""
    name = STYLE_PREFIX.sub("", name)
    while STYLE_SUFFIX.search(name):
        name = STYLE_SUFFIX.sub("", name)
    return name


def icons_of(source: Path, prefix: str) -> dict:
    return json.loads((source / f"iconify-json/json/{prefix}.json").read_text(encoding="utf-8"))


def noto(source: Path, names: dict[str, Names]) -> Iterator[Drawing]:
    for prefix in ("noto", "noto-v1"):
        icons = icons_of(source, prefix)
        for name in sorted(icons["icons"]):
            known = names.get(name)
            if (known and known.unclear) or PEOPLE_AND_VARIANTS.search(name):
                continue
            belongs, hard = (known.belongs, known.hard) if known else (frozenset(), frozenset())
            yield Drawing(f"{prefix}-{name}", name, svg_of(icons, name), belongs, hard)


def icons(source: Path, names: dict[str, Names], trained: set[str]) -> Iterator[Drawing]:
    collections_ = json.loads((source / "iconify-json/collections.json").read_text(encoding="utf-8"))
    named: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    ordinary: list[tuple[str, str]] = []
    for prefix, collection in collections_.items():
        if collection.get("category") in SKIPPED_CATEGORIES:
            continue
        for name in icons_of(source, prefix)["icons"]:
            if f"{prefix}:{name}" in trained:
                continue
            if stem(name) in names:
                named[stem(name)].append((prefix, name))
            elif not HINTS.search(name) and "off" not in name.split("-"):
                ordinary.append((prefix, name))
    chosen = {
        one: name for name, all_ in named.items() for one in sorted(all_, key=lambda i: rank(":".join(i)))[:PER_NAME]
    }
    chosen |= dict.fromkeys(sorted(ordinary, key=lambda i: rank(":".join(i)))[:ORDINARY_ICONS], "")
    by_prefix: dict[str, list[str]] = collections.defaultdict(list)
    for prefix, name in sorted(chosen):
        by_prefix[prefix].append(name)
    for prefix, members in by_prefix.items():
        all_icons = icons_of(source, prefix)
        for name in members:
            known = names.get(chosen[prefix, name], Names(frozenset(), frozenset(), frozenset()))
            yield Drawing(f"{prefix}-{name}", stem(name), svg_of(all_icons, name), known.belongs, known.hard)


def clipart(source: Path, names: dict[str, Names], trained: set[str]) -> Iterator[Drawing]:
    root = source / "openclipart-svg/usr/share/openclipart/svg"
    paths = {p.relative_to(root).with_suffix("").as_posix(): p for p in root.rglob("*.svg") if not p.is_symlink()}
    skipped = re.compile(
        r"^(shapes|special|computer/(icons|buttons)|logos|buttons|geography|unsorted)|games/cards|flags/"
    )
    ordinary = [
        path for path in paths if path not in names and not skipped.search(path) and not HINTS.search(path.lower())
    ]
    for path in [*names, *sorted(ordinary, key=rank)[:ORDINARY_CLIPART]]:
        if path not in paths or (path in names and names[path].unclear):
            continue
        if f"openclipart:{rank(path + '.svg')[:10]}" in trained:
            continue
        svg = paths[path].read_text(encoding="utf-8", errors="replace")
        known = names.get(path, Names(frozenset(), frozenset(), frozenset()))
        yield Drawing(path.replace("/", "-"), path.rsplit("/", 1)[-1], svg, known.belongs, known.hard)


def picture(svg: str) -> Image.Image | None:
    """128 × 128 on white, or None if nothing is seen. What is drawn fills it: clip art lies anywhere on its sheet."""
    try:
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, dpi=96, skip_system_fonts=True))
    except (ValueError, OSError):
        return None
    drawn = Image.open(io.BytesIO(data)).convert("RGBA")
    box = drawn.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None or drawn.width * drawn.height > 50_000_000:
        return None
    side = max(box[2] - box[0], box[3] - box[1])
    square = Image.new("RGBA", (side + side // 8,) * 2, (255, 255, 255, 255))
    place = ((square.width - (box[2] - box[0])) // 2, (square.height - (box[3] - box[1])) // 2)
    square.alpha_composite(drawn.crop(box), place)
    small = square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return small if np.ptp(np.asarray(small)) > 16 else None


def look(image: Image.Image) -> bytes:
    """The same for pictures that hardly differ: 12 × 12 pixels of 16 levels."""
    return (np.asarray(image.convert("L").resize((12, 12), Image.Resampling.BOX)) >> 4).tobytes()


def trained_looks(work: Path, records: list[dict]) -> set[bytes]:
    """Of all that pocket was trained on, so that no copy of it, from another set or folder, is among the tests."""
    images = np.load(work / "images.npy", mmap_mode="r")  # (N, 64, 64, 4), premultiplied
    looks = set()
    for row, record in zip(images, records, strict=True):
        if record["split"] == "train":
            rgb = np.asarray(row[..., :3], np.uint16) + (255 - row[..., 3:])
            whole = Image.fromarray(rgb.clip(0, 255).astype(np.uint8))
            box = Image.fromarray(np.asarray(row[..., 3])).point(lambda a: 255 * (a > 8)).getbbox()
            if box is None:
                continue
            side = max(box[2] - box[0], box[3] - box[1])
            square = Image.new("RGB", (side + side // 8,) * 2, "white")
            place = ((square.width - (box[2] - box[0])) // 2, (square.height - (box[3] - box[1])) // 2)
            square.paste(whole.crop(box), place)
            looks.add(look(square))
    return looks


def write(folder: Path, drawings: Iterator[Drawing], seen: set[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows, seen, dropped = [], set(seen), 0
    for drawing in drawings:
        image = picture(drawing.svg)
        if image is None or look(image) in seen:
            dropped += 1
            continue
        seen.add(look(image))
        file = folder / f"{re.sub('[^a-zA-Z0-9_.-]', '_', drawing.key)}.png"
        image.save(file)
        rows.append(
            (
                f"{folder.name}/{file.name}",
                ";".join(sorted(drawing.belongs)),
                drawing.name,
                ";".join(sorted(drawing.hard)),
            )
        )
    with folder.with_suffix(".csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(("path", "categories", "name", "hard"))
        writer.writerows(rows)
    counts = collections.Counter(category for row in rows for category in row[1].split(";") if category)
    print(f"{folder.name}: {len(rows):,d} pictures ({dropped} twice there, trained on, or empty); {dict(counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--output", type=Path, help="default: WORK/moderation")
    arguments = parser.parse_args()
    source, output = arguments.work / "src", arguments.output or arguments.work / "moderation"
    records = [json.loads(line) for line in (arguments.work / "records.jsonl").read_text().splitlines()]
    trained = {record["id"] for record in records if record["split"] == "train"}
    names, looks = read_names(), trained_looks(arguments.work, records)
    write(output / "noto", noto(source, names["emoji"]), set())
    write(output / "clipart", clipart(source, names["clipart"], trained), looks)
    write(output / "icons", icons(source, names["icon"], trained), looks)


if __name__ == "__main__":
    main()
