"""What can be told of a caption without a model: its tokens, its script, and whether it is text at all."""

from __future__ import annotations

import functools
import hashlib
import re
from array import array
from collections import Counter

from clip.simple_tokenizer import default_tokenizer

__all__ = ["digest", "is_no_text", "script", "tokens"]

_LONGEST = 20_000  # characters that are looked at: a hostile text of megabytes would take seconds

_ADDRESS_OR_FILE = re.compile(
    r"\s*(?:[a-z]+://\S+|\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|avif|svg|html?|php))\s*", re.IGNORECASE
)
_SCRIPTS = (
    *("Latin", "Cyrillic", "Greek", "Han", "Hiragana", "Katakana", "Hangul", "Arabic", "Hebrew", "Devanagari"),
    *("Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao"),
    *("Tibetan", "Myanmar", "Khmer", "Georgian", "Armenian", "Ethiopic", "Mongolian"),
)


def tokens(caption: str) -> list[int]:
    """As the model sees it: what differs in case and white space only is the same."""
    return default_tokenizer().encode(caption[:_LONGEST], special_words=False)


def digest(ids: list[int]) -> int:
    return int.from_bytes(hashlib.blake2b(array("i", ids).tobytes(), digest_size=8).digest(), "little")


def script(caption: str) -> str:
    """The script of most of its letters."""
    caption = caption[:1000]
    if caption.isascii():
        return "Latin" if any(map(str.isalpha, caption)) else "no letters"
    found = Counter(_script_of_letter(character) for character in caption if character.isalpha())
    return found.most_common(1)[0][0] if found else "no letters"


@functools.lru_cache(maxsize=1 << 16)
def _script_of_letter(letter: str) -> str:
    import regex  # knows the scripts of Unicode, which the standard library does not

    return next((script for script in _SCRIPTS if regex.match(rf"\p{{Script={script}}}", letter)), "other")


def is_no_text(caption: str) -> bool:
    """An address, a file name, or nothing with a letter: mostly another column was taken for the captions."""
    beginning = caption[:2000]
    return bool(_ADDRESS_OR_FILE.fullmatch(beginning)) or not any(map(str.isalpha, beginning))
