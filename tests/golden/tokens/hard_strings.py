"""Strings that are hard for a tokenizer, made from a seed with the standard library alone.

``hard_strings(count, seed)`` mixes scripts, emoji, entities, mojibake, controls, white space of every kind, special
words in every dress, and the seams between them, for most bugs live at seams.
"""
# ruff: noqa: SIM905  # lists of words read better as sentences

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

Maker = Callable[[random.Random], str]

WORDS = (
    "a an the photo picture of dog cat man woman in on with red blue standing street table kitchen pizza labradoodle "
    "skateboarder unbelievably photobombing o'clock rock'n'roll CEO NASA iPhone McDonald ROFL xylophonist "
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis qwrtzpsdfg zzzzzz aaaaaaaaaaaa "
    "e-mail state-of-the-art http://example.org/a_b?c=d&e=f user@example.org C++ #hashtag @mention 3.14159 1,000,000"
).split()

SCRIPTS = {
    "latin": "àéîõüçñøåßæœđłřşžőűāēģķņ ÀÉÎÕÜÇÑØÅẞÆŒĐŁŘŞŽŐŰ",
    "greek": "αβγδεζηθικλμνξοπρσςτυφχψω ΑΒΓΔΕΣΩΆΈΉΊΌΎΏϊϋΐΰ",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюя АБВГДЕЁЖІЇЄҐЎђљњћџ",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשת ךםןףץ",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي ةىءآأؤإئ ٠١٢٣ ﻻﷺ",
    "devanagari": "अआइईउऊकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह ािीुूेैोौं्ँः १२३",
    "bengali": "অআইঈকখগঘঙচছজঝঞটঠডঢ ািীুূেৈোৌং্ য়ড়ঢ়",
    "tamil": "அஆஇஈஉஊகஙசஞடணதநபமயரலவ ாிீுூெேைொோௌ்",
    "thai": "กขคงจฉชซดตถทนบปผพมยรลวสหอ ะาิีึืุูเแโใไ่้๊๋์ ๑๒๓",
    "khmer": "កខគឃងចឆជឈញដឋឌឍណតថទធន ាិីឹឺុូ្",
    "georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ ᲐᲑᲒ",
    "armenian": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցւփքօֆև ԱԲԳ",
    "han": "一只狗在草地上奔跑的照片貓魚龍鳥山水火木金土 々〇㐀𠀀𪚥",
    "kana": "あいうえおかきくけこさしすせそ アイウエオカキクケコ ガギグゲゴ がぎぐ ー・",
    "hangul": "가나다라마바사아자차카타파하 각간갇갈 ㄱㄴㄷ 각",
    "ethiopic": "ሀሁሂሃሄህሆለሉሊላሌልሎ ፩፪",
    "cherokee": "ᎠᎡᎢᎣᎤᎥᎦ ꭰꭱꭲ",
    "runes": "ᚠᚢᚦᚨᚱᚲ 𐌰𐌱𐌲 𝔞𝕓𝒸𝟘𝟙 𝓗𝓲",
    "digits": "0123456789 ٠١٢٣ ०१२ ¹²³ ½¼⅓ ⅣⅫ ①②⑩ 一二三 ൧ 𝟏",
}
SYMBOLS = "€£¥¢©®™§¶†‡•…–—―‐‑«»‹›¿¡°±×÷µ¬¦¨¯´¸ªº∞≈≠≤≥√∑∏∫∂◊│┌┐└┘├┤═║▀▄█░▒▓←→↑↓☀☂★♠♥♪✓✔✖�"
COMBINING = "̧̨̛̣̤̇̈́̀̂̃̊̄̆̌͘ͅ⃝⃣̸゙゚"
EMOJI = ("😀 😂 🐶 🐱 ❤ ❤️ ☎️ 👍🏽 👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪 🇺🇸 1️⃣ #️⃣ 🧑🏿‍🤝‍🧑🏻 👁️‍🗨️ 🫠 🤷🏻‍♀️ ㊗️ ™️ ©️").split()
SPACES = [*map(chr, range(0x1C, 0x20)), *"\t\n\v\f\r \x85\xa0\u1680\u180e", *map(chr, range(0x2000, 0x200E))]
SPACES += [*"\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\u00ad", "\r\n", "\n\n", "  "]
CONTROLS = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    "\u200b",
    "\u200e",
    "\u202e",
    "\u206a",
    "\ufff9",
    "\ufffc",
]
CONTROLS += [
    "\x1b[31m",
    "\x1b[0;1m",
    "\x1b[",
    "\x00\x00",
    "\u061c",
    "\ufe0f",
    "\U000e0041",
    "\ue000",
    "\uf8ff",
    "\uffff",
]
SURROGATES = ["\ud800", "\udfff", "\ud83d\udc36", "\udc36\ud83d", "\ud83d", "\udbff\udfff"]
QUOTES = [
    "'",
    "’",
    "‘",
    "ʼ",
    "＇",
    "`",
    "´",
    "“",
    "”",
    '"',
    "‛",
    "‟",
    "″",
    "′",
    "&#39;",
    "&rsquo;",
    "&apos;",
    "&amp;#39;",
]
CONTRACTIONS = [
    "s",
    "t",
    "re",
    "ve",
    "m",
    "ll",
    "d",
    "S",
    "T",
    "RE",
    "Ve",
    "M",
    "LL",
    "lL",
    "D",
    "ſ",
    "x",
    "em",
    "sd",
    "res",
]
SPECIALS = ["<|startoftext|>", "<|endoftext|>"]
LIGATURES = "ﬀﬁﬂﬃﬄﬅﬆĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬓﬔΰ"
CASES = [
    "Σ",
    "ΟΔΟΣ",
    "ΣΑΣ ΣΑΣ.",
    "ΑΣ'",
    "ΑΣ\u00ad",
    "ΑΣ\u0301Α",
    "İ",
    "I",
    "ı",
    "i̇",
    "İSTANBUL",
    "DİYARBAKIR",
    "ẞ",
    "Ⅳ",
    "ⓐⒶ",
    "K",
    "Å",
    "ſ",
]
ENTITIES = (
    "amp lt gt quot apos nbsp copy reg eacute Eacute EACUTE ntilde hellip mdash rsquo ldquo szlig SZLIG not notin "
    "ampx Jscr HilbertSpace NewLine Tab ZeroWidthSpace fjlig bne acE lang rang shy zwj euro trade frac12 bogus x "
    "#39 #x27 #X27 #0 #x0 #13 #10 #28 #127 #128 #x80 #x85 #x92 #150 #xd800 #xDFFF #x110000 #99999999 #xfffe #x1F436 "
    "#8217 #160 #x3000 #xff1c # #x #xg #-1 #12a"
).split()
ONE_BYTE = ["latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "mac_roman", "cp437", "iso-8859-2"]


def _word(rng: random.Random) -> str:
    return rng.choice(WORDS)


def _cased(rng: random.Random) -> str:
    return "".join(
        rng.choice([str.upper, str.lower, str.swapcase, str])(c) for c in rng.choice(WORDS + SPECIALS + CASES)
    )


def _script(rng: random.Random) -> str:
    letters = SCRIPTS[rng.choice(sorted(SCRIPTS))]
    return "".join(rng.choice(letters) for _ in range(rng.randint(1, 12)))


def _letters(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 40, 100])))


def _number(rng: random.Random) -> str:
    return rng.choice(["2024", "007", "1,5", "3.14", "1st", "10%", "$5", "½", "x²", "Ⅷ", "٤٢", "１２", "9" * 20])


def _punctuation(rng: random.Random) -> str:
    return "".join(rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") for _ in range(rng.randint(1, 6)))


def _contraction(rng: random.Random) -> str:
    return rng.choice(["it", "they", "I", "", "5", "é", "x'", "ΟΔΟΣ"]) + rng.choice(QUOTES) + rng.choice(CONTRACTIONS)


def _entity(rng: random.Random) -> str:
    entity = "&" + rng.choice(ENTITIES) + rng.choice([";", ";", ";", "", " ", "x", "&"])
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        entity = entity.replace("&", rng.choice(["&amp;", "&AMP;", "&#38;", "&amp", "＆"]), 1)
    return entity


def _mojibake(rng: random.Random) -> str:
    text = rng.choice([_script, _symbols, _emoji, _contraction])(rng) + rng.choice(
        ["", " à la", " café", "…", "’s", "\xa0"]
    )
    for _ in range(rng.choice([1, 1, 1, 2])):
        text = text.encode("utf-8", "surrogatepass").decode(rng.choice(ONE_BYTE), rng.choice(["replace", "ignore"]))
    return text.replace("\xa0", " ") if rng.random() < 0.2 else text


def _symbols(rng: random.Random) -> str:
    return "".join(rng.choice(SYMBOLS) for _ in range(rng.randint(1, 4)))


def _bad(rng: random.Random) -> str:
    """The characters on which ftfy decides what is mojibake, in any order."""
    pool = SYMBOLS + SCRIPTS["latin"] + SCRIPTS["greek"] + SCRIPTS["cyrillic"] + "ÂÃâã€™œ\x80\x93\xa0\xad  aZ"
    return "".join(rng.choice(pool) for _ in range(rng.randint(2, 8)))


def _emoji(rng: random.Random) -> str:
    return "".join(rng.choice(EMOJI) for _ in range(rng.randint(1, 3)))


def _combined(rng: random.Random) -> str:
    return "".join(
        rng.choice("aeionsAEIΣкがか가1 ") + rng.choice(COMBINING) * rng.randint(0, 3) for _ in range(rng.randint(1, 5))
    )


def _wide(rng: random.Random) -> str:
    text = rng.choice([*WORDS, *SPECIALS, "it's 5!"])
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" and rng.random() < 0.9 else c for c in text)
    return wide + rng.choice(["", "ﾀｰﾝ", "￦", "￩", "　"])


def _special(rng: random.Random) -> str:
    text = rng.choice(SPECIALS)
    dress = rng.randrange(10)
    if dress == 1:
        text = text.upper()
    elif dress == 2:
        text = text.replace("<", "&lt;").replace(">", "&gt;")
    elif dress == 3:
        text = text.replace("|", rng.choice(["&#124;", "&vert;", "&amp;vert;", "｜", "&VerticalLine;"]))
    elif dress == 4:
        text = "".join(f"&#{ord(c)};" for c in text)
    elif dress == 5:
        text = text.replace("t", "ţ", 1).replace("s", "ſ", 1)
    elif dress == 6:
        text = text.replace("e", "e\u0301", 1) if rng.random() < 0.5 else text.replace("o", "o\x00\x1f", 1)
    elif dress == 7:
        cut = rng.randrange(len(text))
        text = text[:cut] + rng.choice(["", " ", "\x00", "\u200b", "\x1b[0m", "\v", "</w>"]) + text[cut:]
    elif dress == 8:
        text = text * rng.randint(2, 3)
    elif dress == 9:
        text = rng.choice("<|a1'é") + text + rng.choice(">|a1'é")
    return text


def _code_point(rng: random.Random) -> str:
    return chr(
        rng.choice([rng.randrange(0x100), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000)])
    )


MAKERS: list[tuple[int, Maker]] = [
    (14, _word),
    (4, _cased),
    (8, _script),
    (3, _letters),
    (3, _number),
    (4, _punctuation),
    (5, _contraction),
    (6, _entity),
    (5, _mojibake),
    (3, _symbols),
    (4, _bad),
    (3, _emoji),
    (3, _combined),
    (3, _wide),
    (4, _special),
    (3, _code_point),
    (2, lambda rng: rng.choice(CASES)),
    (2, lambda rng: rng.choice(LIGATURES)),
    (3, lambda rng: rng.choice(CONTROLS)),
    (1, lambda rng: rng.choice(SURROGATES)),
    (3, lambda rng: rng.choice(QUOTES)),
    (4, lambda rng: rng.choice(SPACES)),
]
FIXED = [
    "",
    " ",
    "\n",
    "\x00",
    "\x1c",
    "&",
    "&amp;",
    "'",
    "’",
    "</w>",
    "a</w>",
    "!",
    "0",
    *SPECIALS,
    *LIGATURES,
    *CASES,
    *EMOJI,
]


def hard_strings(count: int, seed: int = 0) -> Iterator[str]:
    """``count`` strings; the first are fixed, the others mix one to nine parts, some of one kind and some of any."""
    rng = random.Random(seed)
    makers = [maker for _, maker in MAKERS]
    weights = [weight for weight, _ in MAKERS]
    yield from FIXED[:count]
    for _ in range(count - len(FIXED)):
        kinds = rng.choices(makers, weights, k=rng.choice([1, 1, 2, 3]))
        parts = [rng.choice(kinds)(rng) for _ in range(rng.choice([1, 2, 3, 5, 9]))]
        glue = rng.choice([" ", " ", "", "", rng.choice(SPACES)])
        yield glue.join(parts)
