#!/usr/bin/env python3
# As it was published with the set that it makes, but for the formatting.
# ruff: noqa
"""Rebuild the starter set from public packages (read README.md first).

Unpacked under SRC:  iconify-json/ (npm @iconify/json@2.2.535)  emojibase-data/ (npm emojibase-data@17.0.0)
                     openclipart-svg/ (Debian openclipart-svg 1:0.18+dfsg-19, dpkg -x)
Needs pillow, numpy, resvg-py==0.5.0.      usage: build_starter.py SRC OUT
"""

import collections
import hashlib
import html
import io
import json
import os
import re
import sys
import unicodedata

import numpy as np
import resvg_py
from PIL import Image

SRC, OUT, PX = sys.argv[1], sys.argv[2], 96
STYLES = {  # style -> (iconify prefix, words for the caption, licence, split rule)
    "twemoji": ("twemoji", "flat emoji", "CC-BY-4.0"),
    "openmoji": ("openmoji", "outlined emoji", "CC-BY-SA-4.0"),
    "fluent_flat": ("fluent-emoji-flat", "flat emoji", "MIT"),
    "noto": ("noto", "emoji", "Apache-2.0"),  # held-out STYLE: never train on it (nor on noto-v1)
}
GROUPS = ["animals-nature", "food-drink", "travel-places", "activities", "objects"]
# held-out CONCEPTS: no training pair of any style or source may show or name them
HELD = """koala;octopus;scorpion;kangaroo;flamingo;hedgehog;parrot;crocodile;bat;squid;cactus;sunflower;mushroom;pineapple;carrot;avocado;broccoli;pizza;
doughnut;popcorn;croissant;pretzel;lollipop;teapot;volcano;tent;ferris wheel;fountain;castle;bridge at night;tractor;helicopter;canoe;sailboat;rocket;ambulance;
umbrella;rainbow;snowman;jack-o-lantern;balloon;trophy;basketball;bowling;kite;teddy bear;crown;sunglasses;necktie;saxophone;violin;drum;microscope;telescope;
scissors;hammer;ladder;magnet;candle;light bulb;alarm clock;anchor;bed;toilet""".replace("\n", "").split(";")
DROP = set(
    """monkey face;tiger face;dog face;cat face;horse face;cow face;pig face;mouse face;rabbit face;pig nose;poodle;ox;ewe;two-hump camel;hatching chick;front-facing baby chick;dragon face;
spouting whale;tropical fish;guide dog;service dog;black cat;empty nest;nest with eggs;white flower;rosette;wilted flower;deciduous tree;shamrock;fallen leaf;leaf fluttering in wind;leafless tree;brown mushroom;
green apple;clinking beer mugs;clinking glasses;tumbler glass;teacup without handle;fork and knife with plate;cup with straw;snow-capped mountain;mount fuji;houses;derelict house;house with garden;Japanese post office;post office;love hotel;
foggy;night with stars;cityscape;sunrise;cityscape at dusk;sunset;railway car;high-speed train;metro;light rail;station;tram car;monorail;oncoming bus;oncoming police car;oncoming taxi;oncoming automobile;horizontal traffic light;construction;
passenger ship;motor boat;airplane departure;airplane arrival;small airplane;suspension railway;mountain cableway;hourglass not done;timer clock;sun with face;full moon face;glowing star;sun behind small cloud;sun behind large cloud;umbrella with rain drops;closed umbrella;umbrella on ground;
snowman without snow;wind face;fog;1st place medal;2nd place medal;3rd place medal;military medal;spade suit;heart suit;diamond suit;club suit;joker;mahjong red dragon;flower playing cards;muted speaker;speaker low volume;speaker medium volume;bell with slash;musical notes;telephone receiver;mobile phone with arrow;
computer disk;dvd;camera with flash;magnifying glass tilted right;closed book;green book;blue book;orange book;ledger;page with curl;page facing up;rolled-up newspaper;bookmark tabs;yen banknote;euro banknote;pound banknote;incoming envelope;envelope with arrow;e-mail;outbox tray;inbox tray;
closed mailbox with raised flag;closed mailbox with lowered flag;open mailbox with raised flag;open mailbox with lowered flag;black nib;open file folder;card index dividers;spiral notepad;card index;round pushpin;linked paperclips;unlocked;locked with pen;locked with key;old key;hammer and pick;hammer and wrench;broken chain;low battery""".replace(
        "\n", ""
    ).split(";")
)
LANGS = ["de", "es", "fr", "it", "ja", "ko", "pl", "pt", "ru", "zh"]


def norm(h):
    return "-".join(x.upper().lstrip("0") or "0" for x in re.split("[-_]", h) if x.upper() != "FE0F")


def slug(s):
    s = unicodedata.normalize("NFKD", s.lower())
    s = "".join(c for c in s if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9]+", "-", s.replace("’", "").replace("'", "")).strip("-")


def render(svg_string=None, svg_path=None, px=PX, crop=False):
    kw = dict(svg_string=svg_string) if svg_string else dict(svg_path=svg_path)
    im = Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(**kw, width=px * (4 if crop else 2), dpi=96, skip_system_fonts=True)))
    ).convert("RGBA")
    if (a := np.asarray(im)[..., 3]).max() == 0:
        raise ValueError("empty")
    if crop and (bb := Image.fromarray((a > 8).astype("uint8")).getbbox()):
        im = im.crop(bb)
    k = px / max(im.size)
    if crop and k != 1:
        im = im.resize((max(1, round(im.width * k)), max(1, round(im.height * k))), Image.LANCZOS)
    im.thumbnail((px, px), Image.LANCZOS)
    c = Image.new("RGBA", (px, px))
    c.alpha_composite(im, ((px - im.width) // 2, (px - im.height) // 2))
    return c


def iconify_svg(d, n):
    while n not in d["icons"]:
        n = d["aliases"][n]["parent"]
    ic = d["icons"][n]
    w = ic.get("width", d.get("width", 16))
    h = ic.get("height", d.get("height", 16))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="192" height="{round(192 * h / w)}" '
        f'viewBox="{ic.get("left", 0)} {ic.get("top", 0)} {w} {h}">{ic["body"].replace("currentColor", "#000")}</svg>'
    )


def concepts():
    base = f"{SRC}/emojibase-data/"
    d = json.load(open(base + "en/data.json"))
    m = json.load(open(base + "en/messages.json"))
    g = {x["order"]: x["key"] for x in m["groups"]}
    sg = {x["order"]: x["key"] for x in m["subgroups"]}
    tr = {l: {norm(e["hexcode"]): e["label"] for e in json.load(open(f"{base}{l}/data.json"))} for l in LANGS}
    out = {}
    for e in d:
        if e.get("group") is None or g[e["group"]] not in GROUPS:
            continue
        lb = e["label"].replace("’", "'")
        if lb in DROP or re.search(r"o'clock|-thirty|moon|globe showing|map of", lb):
            continue
        k = norm(e["hexcode"])
        out[k] = dict(
            label=lb,
            keywords=[t for t in e.get("tags", []) if t != lb],
            category=g[e["group"]],
            subcategory=sg[e["subgroup"]],
            i18n={l: tr[l].get(k) for l in LANGS},
        )
    return out


def iconset(prefix):
    d = json.load(open(f"{SRC}/iconify-json/json/{prefix}.json"))
    names = {slug(n): n for n in list(d.get("aliases", {})) + list(d["icons"])}
    chars = {norm(c): n for c, n in d.get("chars", {}).items()}
    return d, names, chars


rec = []
C = concepts()
held = {k for k, e in C.items() if e["label"] in HELD}
missing = set(HELD) - {C[k]["label"] for k in held}
assert not missing, missing
heldwords = {C[k]["label"] for k in held}
heldre = re.compile(r"\b(" + "|".join(sorted(map(re.escape, heldwords), key=len, reverse=True)) + r")(s|es)?\b", re.I)


def holdout_split(k, style):
    if style == "noto":
        return "test_style_and_concept" if k in held else "test_style"
    if k in held:
        return "test_concept"
    if heldre.search(C[k]["label"]):
        return "excluded_holdout"  # e.g. "circus tent" while "tent" is held out
    return "val" if int(hashlib.sha256((style + k).encode()).hexdigest(), 16) % 20 == 0 else "train"


for style, (prefix, words, lic) in STYLES.items():
    d, names, chars = iconset(prefix)
    os.makedirs(f"{OUT}/images/{style}", exist_ok=True)
    n = 0
    for k, e in C.items():
        name = chars.get(k) or names.get(slug(e["label"]))
        if not name or (style == "noto" and k not in held and int(hashlib.sha256(k.encode()).hexdigest(), 16) % 2):
            continue
        f = f"images/{style}/{k.lower()}.png"
        render(iconify_svg(d, name)).save(f"{OUT}/{f}", optimize=True)
        n += 1
        split = holdout_split(k, style)
        kws = [t for t in e["keywords"] if split not in ("train", "val") or not heldre.search(t)]
        rec.append(
            dict(
                id=f"{style}:{k.lower()}",
                file=f,
                split=split,
                source=f"@iconify/json:{prefix}",
                style=style,
                concept=k,
                label=e["label"],
                caption=", ".join([e["label"]] + [t for t in kws if t.lower() not in e["label"].lower()][:4]),
                keywords=kws,
                category=e["category"],
                subcategory=e["subcategory"],
                license=lic,
            )
        )
    print(style, n)
# ------------------------------------------------------------ Open Clip Art (public domain)
R = f"{SRC}/openclipart-svg/usr/share/openclipart/svg/"
rows = []
BAD = (
    "shapes/",
    "computer/icons",
    "special/",
    "computer/buttons",
    "signs_and_symbols",
    "recreation/games/cards",
    "logos",
    "buttons",
    "geography",
    "unsorted",
)
for root, _, fs in sorted(os.walk(R)):
    for fn in sorted(fs):
        p = os.path.join(root, fn)
        r = p[len(R) :]
        if not fn.endswith(".svg") or os.path.islink(p) or r.startswith(BAD):
            continue
        s = open(p, encoding="utf8", errors="replace").read(200000)
        m = re.search(r"<metadata.*?</metadata>", s, re.S)
        md = m.group(0) if m else ""
        if "publicdomain" not in md.lower():
            continue
        t = re.findall(r"<dc:title>(.*?)</dc:title>", md, re.S)
        tags = [html.unescape(x).strip().replace("_", " ") for x in re.findall(r"<rdf:li>(.*?)</rdf:li>", md, re.S)]
        rows.append(
            (
                p,
                r,
                re.sub(
                    r"(?i)\(?\bb (?:&|and) w\b\)?",
                    "black and white",
                    re.sub(r"\s+", " ", html.unescape(html.unescape(t[0]))).strip(),
                )
                if t
                else "",
                [x for x in dict.fromkeys(tags) if x and x != "hash" and x.isascii()],
            )
        )
tf = collections.Counter(x[2].lower() for x in rows)
voc = set()
for e in json.load(open(f"{SRC}/emojibase-data/en/data.json")):
    voc.update(re.findall("[a-z]+", (e["label"] + " " + " ".join(e.get("tags", []))).lower()))
for s in ("ph", "mdi", "lucide", "tabler", "game-icons"):
    [voc.update(re.findall("[a-z]+", n)) for n in json.load(open(f"{SRC}/iconify-json/json/{s}.json"))["icons"]]
os.makedirs(f"{OUT}/images/openclipart", exist_ok=True)
n = 0
seen = set()
fail = 0
for p, r, t, tags in rows:
    if not t or tf[t.lower()] > 3 or re.match(r"(?i)(clipart by|various|aiga|svg )", t):
        continue
    t = re.sub(r"[_#]+", " ", t)
    t = re.sub(r"\s*\(?\b[vR]?\d+\b\)?\s*$", "", t).strip()
    t = re.sub(r"(?<=[a-z])\d+$", "", t)
    ws = re.findall("[a-z]+", t.lower())
    if not ws or len(ws) > 8 or sum(w in voc for w in ws) / len(ws) < 0.6 or not t.isascii():
        continue
    try:
        im = render(svg_path=p, crop=True)
    except BaseException:
        fail += 1
        continue
    h = hashlib.sha256(np.asarray(im.resize((12, 12))).tobytes()).hexdigest()
    if h in seen:
        continue
    seen.add(h)
    sid = hashlib.sha256(r.encode()).hexdigest()[:10]
    f = f"images/openclipart/{sid}.png"
    im.save(f"{OUT}/{f}", optimize=True)
    n += 1
    cap = t.lower()
    cat = r.split("/")[0]
    extra = [x for x in tags if x.lower() not in cap.lower()][:3]
    text = (cap + " " + " ".join(tags)).lower()
    named = heldre.search(text)
    split = (
        "excluded_holdout"
        if named
        else ("test_retrieval" if int(hashlib.sha256(cap.encode()).hexdigest(), 16) % 4 == 0 else "train")
    )  # by title: no near-duplicate crosses
    rec.append(
        dict(
            id=f"openclipart:{sid}",
            file=f,
            split=split,
            source="openclipart-svg:" + r,
            style="clipart",
            concept=None,
            label=cap,
            caption=cap + (", " + ", ".join(extra) if extra else ""),
            keywords=tags,
            category=cat,
            subcategory=os.path.dirname(r),
            license="public-domain",
        )
    )
print("openclipart", n, "render failures", fail)
with open(f"{OUT}/pairs.jsonl", "w") as fo:
    for r in rec:
        fo.write(json.dumps(r, ensure_ascii=False) + "\n")
json.dump(C, open(f"{OUT}/concepts.json", "w"), ensure_ascii=False, indent=0)
json.dump(
    dict(style=["noto", "noto-v1"], concepts={k: C[k]["label"] for k in sorted(held)}),
    open(f"{OUT}/holdout.json", "w"),
    ensure_ascii=False,
    indent=1,
)
print(len(rec), collections.Counter((r["style"], r["split"]) for r in rec))
print("mean caption words", sum(len(r["caption"].split()) for r in rec) / len(rec))
