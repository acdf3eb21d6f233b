"""The starter set, more emoji styles and icons → one array of pictures and one file of records.

Run after ``fetch.sh`` and ``build_starter.py``; needs resvg-py 0.5.0. Writes WORK/images.npy, (N, 64, 64, 4) uint8 RGBA
with premultiplied alpha, and WORK/records.jsonl with style, split, label, keywords and licence of each row.

What may train is decided here. No picture of a held-out style, and none whose texts name a held-out concept: by the
word itself, by its code point, or by one of NEAR_NAMES, under which other sets file the same drawing. A further
VALIDATION_CONCEPTS concepts of the starter set are kept from training by their word: on things never seen, too, every
choice of the recipe is made without a look at the test.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image
from wordnet import Nouns, english_words

SIDE = 64
PER_NAME = 12  # of icons: common names come in a hundred sets
VALIDATION_CONCEPTS = 48

# Emoji sets by prefix; Noto's two (noto, noto-v1) are the held-out style. Of twemoji, openmoji and fluent-emoji-flat
# the starter set has a part: here are their faces, people and rarer signs.
EMOJI_SETS = (
    *("twemoji", "openmoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"),
    *("emojione", "emojione-v1", "emojione-monotone", "fxemoji", "streamline-emojis"),
)
STARTER_STYLES = {"twemoji": "twemoji", "openmoji": "openmoji", "fluent-emoji-flat": "fluent_flat"}
EMOJI_OF_ANOTHER_RENDERING = {"fluent-emoji"}  # with gradients: slow to render, and else the flat ones once more
SKIPPED_CATEGORIES = {"Emoji", "Logos", "Flags / Maps", "Programming"}

NEAR_NAMES = (
    "alarm alarms alligator award ballon balloons barber bathroom bedroom bowl-pin bridge-night brolly bulb bulbs "
    "cacti camp camping champignon chopper croc cup-trophy cut donut donuts doughnuts ferris fungus halloween hotel "
    "idea incandescent insurance launch lavatory lightbulb macaw mic-scope octopi parakeet parasol pumpkin restroom "
    "royal sail sailing sax scissor shades sleep snowmen space-shuttle spacecraft spaceship spyglass startup "
    "stepladder sun-glasses teddy tie toadstool tv-tower vip wc winner yacht"
)

STYLE_SUFFIX = re.compile(
    r"-(outlined?|fill(ed)?|solid|line|linear|bold|thin|light|duotone|regular|sharp|round(ed)?|two-?tone|broken|bulk|alt"
    r"|color|mono|duo|stroke|remix|loop|flat|freehand|one|two|\d+|\d+px|[a-z])$"
)
STYLE_PREFIX = re.compile(r"^(baseline|outlined?|round(ed)?|sharp|two-?tone|filled|basic|a|i)-(?=[a-z])")
INTERFACE = re.compile(
    r"\b(off|add|minus|plus|check|remove|slash|circle|square|edit|settings?|search|lock|up|down|left|right|arrows?|x|alt"
    r"|edit|share|sync|cancel|block|alert|info|question|pause|play|stop|open|cog|export|import|delete|variant|rectangle"
    r"|skin|tone|flag|letter|number|logo|button|brand|app|apps|top|bottom|end|start|on|in|out|of|and|with|no"
    r"|small|more|simple|empty|active|forward|back|filter|auto|user|agent|account|file|data)\b"
)
# Skin tones, clock faces, flags and characters: many, alike, and little to learn from.
VARIANTS = re.compile(
    r"skin-tone|-(light|medium|dark)$|\bflag|o-?clock|thirty|keycap|regional|-low$|button$|clock-\d|^\d"
)
UNKNOWN_SIGNS = re.compile(r"black|white|letter|symbol|arrow|index|[a-z]{15}")


def held_out_pattern(held: Iterable[str]) -> re.Pattern[str]:
    """Finds the words however they are spelt: "teddybear", "tea-pot", "pretzel2", "Light bulbs"."""
    words = sorted({re.sub(r"[ -]", "", word) for word in held}, key=len, reverse=True)
    spelt = "|".join(r"[\s_-]*".join(word) for word in words)
    return re.compile(rf"(?<![a-z])({spelt})(s|es)?(?![a-z])", re.IGNORECASE)


def validation_concepts(folder: Path) -> list[str]:
    """Labels of one word from the starter set, drawn by their hash: nobody chose them."""
    records = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    held = json.loads((folder / "holdout.json").read_text())["concepts"].values()
    labels = {record["label"] for record in records if record["subcategory"] and record["label"].isalpha()}
    return sorted(labels - set(held), key=lambda label: hashlib.sha256(label.encode()).hexdigest())[
        :VALIDATION_CONCEPTS
    ]


def svg_of(icons: dict, name: str) -> str:
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    body = icon["body"].replace("currentColor", "#000")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{2 * SIDE}" '
        f'height="{2 * SIDE}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def premultiplied(image: Image.Image) -> np.ndarray:
    """(SIDE, SIDE, 4) uint8. Scaled with its alpha premultiplied: colours under transparent pixels do not bleed."""
    return np.asarray(image.convert("RGBA").convert("RGBa").resize((SIDE, SIDE), Image.Resampling.BOX)).copy()


def starter(folder: Path) -> Iterator[tuple[dict, np.ndarray]]:
    held = json.loads((folder / "holdout.json").read_text())["concepts"].values()
    named, nearly_named = held_out_pattern(held), held_out_pattern(NEAR_NAMES.split())
    validation = held_out_pattern(validation_concepts(folder))
    for line in (folder / "pairs.jsonl").read_text().splitlines():
        record = json.loads(line)
        is_test = record["split"].startswith("test")
        if not is_test and record["style"] == "clipart" and nearly_named.search(record["label"]):
            continue
        if is_test or not (record["split"] == "excluded_holdout" or named.search(record["label"])):
            image = Image.open(folder / record["file"]).convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            keys = ("id", "split", "style", "concept", "label", "keywords", "subcategory", "license")
            kept = {key: record[key] for key in keys}
            if not is_test and validation.search(record["label"]):
                kept["split"] = "val_concept"
            elif not is_test:
                kept["keywords"] = [word for word in record["keywords"] if not validation.search(word)]
            yield kept, np.asarray(image)


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("’", "").replace("'", "")).strip("-")


def more(source: Path, folder: Path) -> Iterator[tuple[dict, str]]:
    """Records with the SVG of their picture: other emoji styles first, then icons of things that WordNet knows."""
    held = json.loads((folder / "holdout.json").read_text())["concepts"]
    named = held_out_pattern([*held.values(), *NEAR_NAMES.split(), *validation_concepts(folder)])
    starter_keys, validation = set(), set()
    for line in (folder / "pairs.jsonl").read_text().splitlines():
        record = json.loads(line)
        starter_keys.add((record["style"], record["concept"]))
        if record["split"] == "val":
            validation.add((record["style"], record["concept"]))
    concepts = {}
    for emoji in json.loads((source / "emojibase-data/en/data.json").read_text()):
        code = "-".join(part.lstrip("0") for part in emoji["hexcode"].split("-") if part != "FE0F")
        concepts[slug(emoji["label"])] = (code, emoji["label"].replace("’", "'"), emoji.get("tags", []))
    collections_ = json.loads((source / "iconify-json/collections.json").read_text())

    slug_of = {code.lower(): key for key, (code, _, _) in concepts.items()}
    joined = {key.replace("-", ""): key for key in concepts}  # fxemoji runs the words of a name together
    for prefix in EMOJI_SETS:
        icons = json.loads((source / f"iconify-json/json/{prefix}.json").read_text())
        slug_by_name = {name: slug_of[code] for code, name in icons.get("chars", {}).items() if code in slug_of}
        for name in icons["icons"]:
            key = re.sub(r"-\d$", "", slug_by_name.get(name, slug(name)))
            code, label, keywords = concepts.get(joined.get(key.replace("-", "")), (None, key.replace("-", " "), []))
            style = STARTER_STYLES.get(prefix, prefix)
            if (
                code in held
                or named.search(f"{label} {name.replace('-', ' ')}")
                or (code is None and (prefix == "fxemoji" or UNKNOWN_SIGNS.search(name)))
                or VARIANTS.search(name)
                or (code and (style, code) in starter_keys)
                or (prefix == "fluent-emoji-high-contrast" and ("fluent_flat", code) in validation)
            ):
                continue
            keywords = [word for word in keywords if not named.search(word) and len(word) > 2]
            licence = collections_[prefix]["license"]["spdx"]
            record = {"id": f"{prefix}:{name}", "split": "train", "style": prefix, "concept": code, "label": label}
            yield {**record, "keywords": keywords, "subcategory": None, "license": licence}, svg_of(icons, name)

    wordnet = source / "wordnet-base/usr/share/wordnet"
    nouns, english = Nouns(wordnet).drawable(), english_words(wordnet)
    groups: dict[str, list[tuple[str, str, str]]] = collections.defaultdict(list)
    for prefix, collection in collections_.items():
        licence = collection["license"].get("spdx", "")
        if (
            prefix in EMOJI_OF_ANOTHER_RENDERING
            or collection.get("category") in SKIPPED_CATEGORIES
            or not licence
            or re.search("NC|GPL|ND", licence)
        ):
            continue
        for name, icon in json.loads((source / f"iconify-json/json/{prefix}.json").read_text())["icons"].items():
            stem = STYLE_PREFIX.sub("", name)
            while STYLE_SUFFIX.search(stem):
                stem = STYLE_SUFFIX.sub("", stem)
            label = stem.replace("-", " ")
            words = label.split()
            is_noun = label in nouns or (len(words) in (2, 3) and words[-1] in nouns and english.issuperset(words))
            if not icon.get("hidden") and is_noun and len(label) > 2 and not INTERFACE.search(label):
                groups[label].append((prefix, name, licence))
    wanted: dict[str, list[tuple[str, str, str]]] = collections.defaultdict(list)
    for label, members in sorted(groups.items()):
        if named.search(label):
            continue
        members.sort(key=lambda member: hashlib.sha256("".join(member).encode()).hexdigest())
        one_a_set = {prefix: (prefix, name, licence) for prefix, name, licence in members}
        for prefix, name, licence in list(one_a_set.values())[:PER_NAME]:
            wanted[prefix].append((label, name, licence))
    for prefix, members in wanted.items():
        icons = json.loads((source / f"iconify-json/json/{prefix}.json").read_text())
        for label, name, licence in members:
            record = {"id": f"{prefix}:{name}", "split": "train", "style": "icon", "concept": None, "label": label}
            yield {**record, "keywords": [], "subcategory": None, "license": licence}, svg_of(icons, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--data", type=Path, help="the starter set (default: WORK/starter)")
    parser.add_argument("--without-share-alike", action="store_true", help="leave CC BY-SA art out")
    arguments = parser.parse_args()
    folder = arguments.data or arguments.work / "starter"
    records, pictures, seen, failures = [], [], set(), 0
    for record, picture in starter(folder):
        records.append(record)
        pictures.append(picture)
        seen.add(picture.tobytes())
    for record, svg in more(arguments.work / "src", folder):
        try:
            data = bytes(resvg_py.svg_to_bytes(svg_string=svg, dpi=96, skip_system_fonts=True))
        except ValueError:
            failures += 1
            continue
        picture = premultiplied(Image.open(io.BytesIO(data)))
        if picture[..., 3].max() == 0 or (key := picture.tobytes()) in seen:
            failures += 1
            continue
        seen.add(key)
        records.append(record)
        pictures.append(picture)
    if arguments.without_share_alike:
        kept = [i for i, record in enumerate(records) if "-SA-" not in record["license"] or record["split"] != "train"]
        records, pictures = [records[i] for i in kept], [pictures[i] for i in kept]
    np.save(arguments.work / "images.npy", np.stack(pictures))
    with (arguments.work / "records.jsonl").open("w") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    counts = collections.Counter((record["style"], record["split"]) for record in records)
    for (style, split), count in sorted(counts.items()):
        print(f"{count:7,d}  {style}  {split}")
    print(
        f"{len({record['label'] for record in records if record['split'] == 'train'}):,d} training labels, "
        f"{failures:,d} pictures empty, twice there or not rendered"
    )


if __name__ == "__main__":
    main()
