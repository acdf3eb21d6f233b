r"""Text → token ids: byte-pair encoding with OpenAI's vocabulary of 49,408 entries.

``SimpleTokenizer`` has the names and the ids of OpenAI's class; ``token_ids`` makes the padded array that a text tower
takes. A text goes through four steps:

1. clean: ``ftfy.fix_text``, HTML entities decoded twice, white space collapsed, lower case;
2. split at white space into chunks, and each chunk into pieces: special words, contractions, runs of letters, single
   digits, runs of anything else;
3. write the UTF-8 bytes of a piece as printable characters, mark the last with ``</w>``, and merge pairs by rank;
4. look each symbol up.

Two facts make it fast, and both are exact. Most text is clean already, and ``_is_simple`` proves it far more cheaply
than ftfy can find nothing to fix. No piece spans white space, so the ids of a text are those of its chunks, which
repeat: they are remembered in a table of bounded size.

Nothing is read at import; the vocabulary is read when a tokenizer is made, its merges when a word first needs them.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import os
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from clip.errors import ConfigError, TextTooLongError

__all__ = [
    "SimpleTokenizer",
    "basic_clean",
    "bytes_to_unicode",
    "default_bpe",
    "default_tokenizer",
    "get_pairs",
    "token_ids",
    "whitespace_clean",
]

START = "<|startoftext|>"
END = "<|endoftext|>"
END_OF_WORD = "</w>"

MERGES = 49152 - 256 - 2
"""Lines of the merge file that are used, after its header; the file holds more."""

REMEMBERED_CHUNKS = 65_536
"""Chunks in the memory of a tokenizer: 10 MB of English. A full memory is emptied and fills with what is current."""

LONGEST_REMEMBERED = 64
"""Characters of the longest chunk worth remembering, so that the memory is bounded in bytes too."""

_INT: Final = "i"
"""What ids are packed as: C's int, which is torch's and NumPy's int32 wherever these run."""

# One grammar for both engines. `regex` knows Unicode's letters and numbers as OpenAI's pattern does; on ASCII they are
# a-z and 0-9, `re` splits the same way, and `regex` need not be imported.
_GRAMMAR = r"'s|'t|'re|'ve|'m|'ll|'d|[{letter}]+|[{number}]|[^\s{letter}{number}]+"
_SPECIAL = r"<\|startoftext\|>|<\|endoftext\|>|"
_ASCII_PIECES = {
    special: re.compile((_SPECIAL if special else "") + _GRAMMAR.format(letter="a-z", number="0-9"))
    for special in (True, False)
}


@functools.cache
def _unicode_pieces(special_words: bool) -> re.Pattern[str]:
    import regex  # brings no stubs; its patterns look like re's

    grammar = _GRAMMAR.format(letter=r"\p{L}", number=r"\p{N}")
    pattern: re.Pattern[str] = regex.compile((_SPECIAL if special_words else "") + grammar, regex.IGNORECASE)
    return pattern


def default_bpe() -> str:
    """Path of the merge file that comes with the package."""
    return str(Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz"))


@functools.cache
def bytes_to_unicode() -> dict[int, str]:
    """A printable character for each byte, in the order of the vocabulary's first 256 entries (GPT-2's table).

    Bytes that print in Latin-1 stand for themselves; the others take the characters from U+0100 on, so that no symbol
    holds white space and a merge file can separate symbols by spaces.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def get_pairs(word: Sequence[str]) -> set[tuple[str, str]]:
    """The pairs of neighbouring symbols (OpenAI compatibility: merging here does not need them)."""
    return set(itertools.pairwise(word))


# ---------------------------------------------------------------------------------------------------------------------
# Cleaning


def basic_clean(text: str) -> str:
    """``text`` with mojibake, curly quotes, ligatures, widths and controls fixed, HTML entities decoded, stripped."""
    import html

    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def whitespace_clean(text: str) -> str:
    """``text`` with each run of white space made one space, stripped."""
    import regex

    # Not `re`: there \s also matches \x1c to \x1f.
    return str(regex.sub(r"\s+", " ", text)).strip()


# When does cleaning change nothing but white space and curly quotes? `ftfy.fix_text` (6.2, 6.3) applies the steps below
# to each line until a round changes nothing; then HTML entities are decoded. What each step can change:
#
#   unescape_html, html.unescape   "&" before a letter, or before "#": names of entities begin with a letter
#   fix_encoding                   nothing in a line that is ASCII or not `is_bad`; see _SUSPECTS
#   fix_c1_controls                U+0080–9F
#   fix_latin_ligatures            Ĳ ĳ ŉ, Ǆ–ǌ, Ǳ–ǳ, U+FB00–FB06
#   fix_character_width            U+3000, U+FF01–FFEF
#   uncurl_quotes                  U+02BC, U+2018–201F: _straighten does the same. Straight quotes compose with nothing
#                                  and make no line bad that was not, so a second round changes nothing
#   fix_line_breaks                \r, U+0085, U+2028, U+2029: white space to white space, but a line may then end
#   fix_surrogates                 U+D800–DFFF
#   remove_terminal_escapes        U+001B
#   remove_control_chars           U+0000–08, 0B, 0E–1F, 7F, U+206A–206F, FEFF, FFF9–FFFC
#   normalize                      text that is not NFC
#
# So ASCII without the few of these is simple; other text is if it has none of these, is NFC and is not bad. Lines
# matter to `is_bad`, which looks at their start, and ftfy also ends a line after a million characters: beyond ASCII,
# text of several lines takes the long way. Where none of \x1c–\x1f is left, `str.split` and \s agree on white space.
# Tests hold each code point, ftfy's own tables and random text against this list.
_CHANGES_ASCII = re.compile(r"[^\t\n\f\r -~]|&[#0-9A-Za-z]")
_CHANGES = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\u2028\u2029\u206a-\u206f\u3000\ud800-\udfff"
    "\ufb00-\ufb06\ufeff\uff01-\uffef\ufff9-\ufffc]"
)
_ENTITY = re.compile("&[#0-9A-Za-z]")
_SINGLE_QUOTES = re.compile("[\u02bc\u2018-\u201b]")
_DOUBLE_QUOTES = re.compile("[\u201c-\u201f]")
_FTFY_LINE = 1_000_000

# A line is bad if ftfy's pattern matches, which takes microseconds to find out. Each of its alternatives needs one of
# the following, as a test proves from the pattern itself: Western symbols and capitals, Central Europe's letters, some
# punctuation, box drawing. Text without them, such as French in lower case, Russian, Chinese or emoji, is not bad.
_SUSPECTS = re.compile(
    "[\x80-\x9f\xa1-\xb6\xb8-\xde\xf7\u0100-\u0385\u0402\u0490\u0491\u2016-\u2018\u201a-\u2025\u2027-\u25ff"
    "\ue000-\uf8ff\ufb00-\ufb06\ufffd]"
)


@functools.cache
def _is_bad() -> Callable[[str], bool]:
    from ftfy.badness import is_bad

    return is_bad


def _is_simple(text: str) -> bool:
    """Whether cleaning can change nothing in ``text`` but white space and curly quotes. May say no without need."""
    if text.isascii():
        # The first two alone decide about most captions, at a tenth of the pattern's cost.
        return (text.isprintable() and "&" not in text) or not _CHANGES_ASCII.search(text)
    return (
        not _CHANGES.search(text)
        and not ("&" in text and _ENTITY.search(text))
        and unicodedata.is_normalized("NFC", text)
        and len(text) <= _FTFY_LINE
        and not (_SUSPECTS.search(text) and _is_bad()(text))
    )


def _straighten(text: str) -> str:
    return text if text.isascii() else _DOUBLE_QUOTES.sub('"', _SINGLE_QUOTES.sub("'", text))


def _clean(text: str) -> str:
    """``text`` as both cleanings make it, up to white space, mostly without their cost."""
    return _straighten(text) if _is_simple(text) else whitespace_clean(basic_clean(text))


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer


class SimpleTokenizer:
    """OpenAI's byte-pair encoding, lower-casing, with words ended by ``</w>``.

    encoder, decoder: symbol → id and back. byte_encoder, byte_decoder: byte → printable character and back.
    bpe_ranks: pair of symbols → rank, lower merges first (to read; merging has a table of its own). cache: piece → its
    symbols separated by spaces, bounded. A subclass may add words to ``encoder`` and ``cache``, and set ``pat``.

    Instances may be shared between threads: each lookup and each store is one step, and a store lost to another thread
    is only computed again.
    """

    def __init__(self, bpe_path: str | os.PathLike[str] = default_bpe()) -> None:  # noqa: B008  # a constant
        self.byte_encoder = bytes_to_unicode()
        self._text = _read_merges(bpe_path)
        symbols = list(self.byte_encoder.values())
        symbols += [symbol + END_OF_WORD for symbol in symbols]
        symbols += self._text.replace(" ", "").split("\n")[:MERGES]
        # Merging gives back each word of our vocabulary whole (a test tries them all), as it must where a table was
        # learned by the same merging. A table by somebody else may be made otherwise: there, no such short cut.
        self._whole_words = len(symbols) if os.fspath(bpe_path) == default_bpe() else 0
        symbols += [START, END]
        self.encoder = {symbol: i for i, symbol in enumerate(symbols)}
        self.cache = {START: START, END: END}
        self._pat: re.Pattern[str] | None = None
        # Chunk → ids, with special words and without. As bytes: the garbage collector would walk tuples over and over.
        self._known: dict[bool, dict[str, bytes]] = {True: {}, False: {}}

    @functools.cached_property
    def decoder(self) -> dict[int, str]:
        return {i: symbol for symbol, i in self.encoder.items()}

    @functools.cached_property
    def byte_decoder(self) -> dict[str, int]:
        return {character: byte for byte, character in self.byte_encoder.items()}

    @property
    def _merges(self) -> list[str]:
        """ "left right" each, in order of rank; few queries need any, for most words are symbols themselves."""
        return self._text.split("\n")[:MERGES]

    @functools.cached_property
    def bpe_ranks(self) -> dict[tuple[str, ...], int]:
        return {tuple(merge.split()): rank for rank, merge in enumerate(self._merges)}

    @functools.cached_property
    def _ranks(self) -> dict[str, int]:
        # What merging reads. Strings, for 48,894 tuples make the garbage collector walk everything: 0.1 s beside torch.
        return {merge: rank for rank, merge in enumerate(self._merges)}

    @property
    def pat(self) -> re.Pattern[str]:
        """The pattern that splits a cleaned text into pieces. A subclass may set its own."""
        return self._pat or _unicode_pieces(True)

    @pat.setter
    def pat(self, pattern: re.Pattern[str]) -> None:
        self._pat = pattern
        self._known[True].clear()

    def bpe(self, token: str) -> str:
        """The symbols of one piece, separated by spaces; ``token`` is written in the characters of ``byte_encoder``."""
        if (known := self.cache.get(token)) is not None:
            return known
        if self.encoder.get(token + END_OF_WORD, self._whole_words) < self._whole_words:
            return token + END_OF_WORD
        merged = " ".join(_merge([*token[:-1], token[-1] + END_OF_WORD], self._ranks))
        # Never emptied, for the special words live here too, and those that a subclass added.
        if len(token) <= LONGEST_REMEMBERED and len(self.cache) < REMEMBERED_CHUNKS:
            self.cache[token] = merged
        return merged

    def encode(self, text: str, *, special_words: bool = True) -> list[int]:
        """The ids of ``text``, without start, end and padding.

        special_words: with True, ``<|startoftext|>`` and ``<|endoftext|>`` in the text are the special ids, as in
        OpenAI's code. With False they are ordinary text and no text can give a special id: what to use for text from
        strangers, who could otherwise end the sentence early and hide the rest from the model.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, not {_describe(text)}")
        chunks = _clean(text).lower().split()
        if special_words and self._pat is not None:
            chunks = [" ".join(chunks)]  # a pattern of somebody else's may span white space
        known = self._known[special_words]
        ids = b"".join([known.get(chunk) or self._learn(chunk, special_words) for chunk in chunks])
        return memoryview(ids).cast(_INT).tolist()

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``: lower case, a space after each word; bytes that are not UTF-8 become U+FFFD."""
        symbols = "".join([self.decoder[int(token)] for token in tokens])
        text = bytes([self.byte_decoder[character] for character in symbols]).decode("utf-8", errors="replace")
        return text.replace(END_OF_WORD, " ")

    def _learn(self, chunk: str, special_words: bool) -> bytes:
        """The packed ids of a part of a clean, lower-case text, remembered if it is short."""
        if special_words and self._pat is not None:
            pieces = self._pat.findall(chunk)
        elif chunk.isascii():
            pieces = _ASCII_PIECES[special_words].findall(chunk)
        else:
            pieces = _unicode_pieces(special_words).findall(chunk)
        encoder = self.encoder
        ids = [encoder[symbol] for piece in pieces for symbol in self.bpe(self._printable(piece)).split(" ")]
        packed = array(_INT, ids).tobytes()
        if len(chunk) <= LONGEST_REMEMBERED:
            known = self._known[special_words]
            if len(known) >= REMEMBERED_CHUNKS:
                known.clear()
            known[chunk] = packed
        return packed

    def _printable(self, piece: str) -> str:
        if piece.isascii() and piece.isalpha():
            return piece  # letters stand for themselves
        return "".join([self.byte_encoder[byte] for byte in piece.encode()])


def _read_merges(path: str | os.PathLike[str]) -> str:
    """The lines of a file behind its header: merges in order of rank. All that are used, and maybe more."""
    text = ""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        # The bundled file is five times longer than what is used of it.
        while text.count("\n") <= MERGES and (block := file.read(1 << 19)):
            text += block
    # OpenAI compatibility: in a shorter file, what follows the last line break counts, and moves the special ids.
    return text.partition("\n")[2]


def _merge(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """Merge pairs of neighbouring symbols, the lowest rank first and from left to right, until none is left.

    A heap of (rank, position) and links to neighbours: n log n in the length of the word, so that a hostile "word" of
    a megabyte takes seconds. All pairs of one rank are merged before pairs made by them compete, as in the definition.
    """
    count = len(symbols)
    following = list(range(1, count + 1))
    preceding = list(range(-1, count - 1))
    # The rank of each symbol and the one that follows it now; entries of the heap that say otherwise are stale.
    current = [ranks.get(f"{left} {right}") for left, right in itertools.pairwise(symbols)]
    current.append(None)
    heap = [(rank, i) for i, rank in enumerate(current) if rank is not None]
    heapify(heap)
    made: list[tuple[int, int]] = []
    while heap:
        rank, i = heappop(heap)
        if current[i] == rank:
            h, j = preceding[i], following[i]
            k = following[i] = following[j]
            symbols[i] += symbols[j]
            symbols[j], current[j] = "", None
            if k < count:
                preceding[k] = i
                current[i] = new = ranks.get(f"{symbols[i]} {symbols[k]}")
                if new is not None:
                    made.append((new, i))
            else:
                current[i] = None
            if h >= 0:
                current[h] = new = ranks.get(f"{symbols[h]} {symbols[i]}")
                if new is not None:
                    made.append((new, h))
        if made and not (heap and heap[0][0] == rank):
            for entry in made:
                heappush(heap, entry)
            made.clear()
    return [symbol for symbol in symbols if symbol]


# ---------------------------------------------------------------------------------------------------------------------
# Padded arrays


@functools.cache
def default_tokenizer() -> SimpleTokenizer:
    """The tokenizer that everything shares; its vocabulary is read at the first call."""
    return SimpleTokenizer()


def token_ids(
    texts: str | Iterable[str],
    context_length: int = 77,
    truncate: bool = False,
    *,
    special_words: bool = True,
    tokenizer: SimpleTokenizer | None = None,
) -> npt.NDArray[np.int32]:
    """Ids of one or many texts between start and end id, padded with zeros: (n, context_length), int32.

    truncate: cut a text that is too long and end it with the end id. special_words: see ``SimpleTokenizer.encode``.
    Raises TextTooLongError for a text that is too long, TypeError for what is no text.
    No texts give (0, context_length), as in OpenAI's ``tokenize``.
    """
    if context_length < 1:
        raise ConfigError(f"context_length is {context_length}, but it must be at least 1")
    if tokenizer is None:
        tokenizer = default_tokenizer()
    start, end = tokenizer.encoder[START], tokenizer.encoder[END]
    # An `encode` that somebody else wrote need not know the option.
    options = {} if special_words else {"special_words": False}
    width = context_length * np.dtype(np.int32).itemsize
    rows = []
    for i, text in enumerate(_each(texts)):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a str, not {_describe(text)}")
        ids = [start, *tokenizer.encode(text, **options), end]
        if len(ids) > context_length:
            if not truncate:
                raise TextTooLongError(
                    f"texts[{i}] ({_excerpt(text)}) has {len(ids)} tokens with start and end, "
                    f"the context length is {context_length}; pass truncate=True to cut it"
                )
            ids = ids[:context_length]
            ids[-1] = end
        rows.append(array(_INT, ids).tobytes().ljust(width, b"\0"))
    # Joined and seen as an array: twice as fast as filling an array row by row. What a bytearray holds can be written.
    return np.frombuffer(bytearray().join(rows), dtype=np.int32).reshape(-1, context_length)


def _each(texts: Any) -> Iterable[Any]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a str or a sequence of str, not {_describe(texts)}")
    return texts


def _excerpt(text: str, length: int = 40) -> str:
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def _describe(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return f"{type(value).__name__}; decode it first: value.decode('utf-8')"
    return type(value).__name__
