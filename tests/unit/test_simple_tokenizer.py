"""The tokenizer: names, memory, errors, and the two facts that its speed rests on."""

from __future__ import annotations

import copy
import functools
import gzip
import hashlib
import itertools
import pickle
import random
import re
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ftfy.badness
import ftfy.chardata
import ftfy.fixes
import numpy as np
import pytest
import regex

from clip import simple_tokenizer
from clip.errors import ClipError, ConfigError, TextTooLongError
from clip.simple_tokenizer import (
    SimpleTokenizer,
    basic_clean,
    bytes_to_unicode,
    default_bpe,
    default_tokenizer,
    get_pairs,
    token_ids,
    whitespace_clean,
)

START, END = 49406, 49407


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def small_tokenizer(folder: Path, merges: str) -> SimpleTokenizer:
    path = folder / "merges.txt.gz"
    path.write_bytes(gzip.compress(("header\n" + merges).encode()))
    return SimpleTokenizer(path)


# --- The vocabulary


def test_vocabulary_is_openai_s(tokenizer: SimpleTokenizer) -> None:
    digest = hashlib.sha256(Path(default_bpe()).read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 49408
    assert len(tokenizer.bpe_ranks) == 48894
    assert tokenizer.bpe_ranks["i", "n"] == 0
    assert tokenizer.encoder["<|startoftext|>"] == START
    assert tokenizer.encoder["<|endoftext|>"] == END
    assert tokenizer.encoder["!"] == 0
    assert tokenizer.byte_encoder == bytes_to_unicode()
    assert [tokenizer.byte_decoder[tokenizer.byte_encoder[byte]] for byte in range(256)] == list(range(256))


def test_known_ids(tokenizer: SimpleTokenizer) -> None:
    assert tokenizer.encode("hello world") == [3306, 1002]
    assert tokenizer.encode("  Hello\n\tWORLD ") == [3306, 1002]
    assert tokenizer.encode("") == []


def test_import_reads_nothing_and_ascii_needs_no_other_library() -> None:
    program = """
import builtins, gzip, sys
opened = []
gzip.open = lambda *a, _open=gzip.open, **k: opened.append(a) or _open(*a, **k)
import clip.simple_tokenizer as module
assert not opened
assert module.token_ids("A photo of a labradoodle, it's 5 o'clock: \\x26 all").shape == (1, 77)
assert len(opened) == 1
assert not {"torch", "regex", "ftfy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_short_merge_file_counts_what_follows_its_last_line_break(tmp_path: Path) -> None:
    # As OpenAI's reader does: the special ids of a small vocabulary depend on it.
    assert small_tokenizer(tmp_path, "a b\nab c</w>").encoder["<|startoftext|>"] == 514
    assert small_tokenizer(tmp_path, "a b\nab c</w>\n").encoder["<|startoftext|>"] == 515


# --- Merging


def merge_by_definition(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """Byte-pair encoding as Sennrich et al. define it: find the best pair, merge it everywhere, repeat."""
    while True:
        pairs = [pair for pair in itertools.pairwise(symbols) if " ".join(pair) in ranks]
        if not pairs:
            return symbols
        best = min(pairs, key=lambda pair: ranks[" ".join(pair)])
        merged: list[str] = []
        i = 0
        while i < len(symbols):
            width = 2 if tuple(symbols[i : i + 2]) == best else 1
            merged.append("".join(symbols[i : i + width]))
            i += width
        symbols = merged


def test_merge_follows_the_definition_with_any_table() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        made = ["a", "b", "c", "c</w>"]
        pairs = []
        for _ in range(rng.randint(1, 12)):
            left, right = rng.choice([symbol for symbol in made if not symbol.endswith(">")]), rng.choice(made)
            pairs.append(f"{left} {right}")
            made.append(left + right)
        rng.shuffle(pairs)  # so that merges may come before what they need: no learned table, and still defined
        ranks = {pair: rank for rank, pair in enumerate(dict.fromkeys(pairs))}
        symbols = [*rng.choices("abc", k=rng.randint(0, 14)), "c</w>"]
        assert simple_tokenizer._merge(list(symbols), ranks) == merge_by_definition(symbols, ranks)


def test_merge_follows_the_definition_with_our_table(tokenizer: SimpleTokenizer) -> None:
    rng = random.Random(2)
    for _ in range(500):
        word = "".join(rng.choices("aaabcdeeehilnorstu", k=rng.randint(1, 40)))
        symbols = [*word[:-1], word[-1] + "</w>"]
        assert tokenizer.bpe(word).split(" ") == merge_by_definition(symbols, tokenizer._ranks)


def test_merging_gives_back_each_word_of_the_vocabulary_whole(tokenizer: SimpleTokenizer) -> None:
    words = [symbol.removesuffix("</w>") for symbol in tokenizer.encoder if symbol.endswith("</w>")]
    assert len(words) > 20_000
    for word in words:
        assert simple_tokenizer._merge([*word[:-1], word[-1] + "</w>"], tokenizer._ranks) == [word + "</w>"]


def test_a_foreign_table_takes_no_short_cut(tmp_path: Path) -> None:
    # "abc" is in the vocabulary, but "b c" merges first and "ab" then never arises.
    small = small_tokenizer(tmp_path, "b c</w>\na b\nab c</w>")
    assert "abc</w>" in small.encoder
    assert small.bpe("abc") == "a bc</w>"


def test_a_long_text_without_a_space(tokenizer: SimpleTokenizer) -> None:
    ids = tokenizer.encode("a" * 100_000)
    assert tokenizer.decode(ids) == "a" * 100_000 + " "


# --- Cleaning


CLEANED = [
    ("caf\u00c3\u00a9", "café"),
    ("it\u2019s \u201cfine\u201d", 'it\'s "fine"'),
    ("\uff2c\uff2f\uff35\uff24", "LOUD"),
    ("\ufb02ubberi\ufb01c", "flubberific"),
    ("&lt;b&gt; &amp;amp; AT&T &eacute;", "<b> & AT&T é"),
    ("a\x00b\x0bc\x1fd", "abcd"),
    ("\x1b[31mred", "red"),
    ("\ud83d\udc36 \ud800", "🐶 \ufffd"),
    (" \u00a0x\u2028 \r\n", "x"),
]


@pytest.mark.parametrize(("text", "cleaned"), CLEANED)
def test_basic_clean(text: str, cleaned: str) -> None:
    assert whitespace_clean(basic_clean(text)) == cleaned


def test_white_space_is_that_of_regex() -> None:
    assert whitespace_clean(" a \t\u3000b\x1cc ") == "a b\x1cc"


@functools.cache
def every_character() -> str:
    return "".join(map(chr, range(sys.maxunicode + 1)))


def test_is_simple_knows_each_character_that_ftfy_changes() -> None:
    everything = every_character()
    changed = {*ftfy.chardata.LIGATURES, *ftfy.chardata.WIDTH_MAP, *ftfy.chardata.CONTROL_CHARS}
    for pattern in (
        ftfy.chardata.C1_CONTROL_RE,
        ftfy.fixes.SURROGATE_RE,
    ):
        changed |= {ord(character) for character in pattern.findall(everything)}
    assert not [hex(c) for c in changed if simple_tokenizer._is_simple("a" + chr(c) + "b")]
    for ours, theirs in (
        (simple_tokenizer._SINGLE_QUOTES, ftfy.chardata.SINGLE_QUOTE_RE),
        (simple_tokenizer._DOUBLE_QUOTES, ftfy.chardata.DOUBLE_QUOTE_RE),
    ):
        assert ours.findall(everything) == theirs.findall(everything)


def test_what_is_called_simple_needs_no_cleaning_for_every_character() -> None:
    # In company of a letter and of a digit, one character at a time, then by the thousand.
    assumed = [c for c in every_character() if simple_tokenizer._is_simple("x" + c + "1")]
    assert len(assumed) > 1_000_000
    lines = [" ".join(assumed[start : start + 1000]) for start in range(0, len(assumed), 1000)]
    clean = [line for line in lines if simple_tokenizer._is_simple(line)]
    assert len(clean) > 0.9 * len(lines)
    for text in clean:
        assert whitespace_clean(basic_clean(text)) == whitespace_clean(simple_tokenizer._straighten(text))
    for character in assumed[:2000]:
        text = "x" + character + "1"
        assert whitespace_clean(basic_clean(text)) == whitespace_clean(simple_tokenizer._straighten(text))


def alternatives_of_bad_text() -> list[list[re.Pattern[str]]]:
    """The characters, one after the other, that each alternative of ftfy's pattern needs."""
    pattern = re.sub(r"(?m)#.*$", "", ftfy.badness.BADNESS_RE.pattern)
    alternatives: list[list[re.Pattern[str]]] = [[]]
    for atom in re.findall(r"\[[^\]]*\]|\\.|\S", pattern):
        if atom == "|":
            alternatives.append([])
        elif atom == "?":  # the one before may be absent
            alternatives[-1].pop()
        elif atom != "^":
            alternatives[-1].append(re.compile(atom))
    return alternatives


def test_bad_text_needs_a_suspect() -> None:
    """No alternative can be spelt with the other characters."""
    others = simple_tokenizer._SUSPECTS.sub("", every_character())
    alternatives = alternatives_of_bad_text()
    assert len(alternatives) > 30
    assert all(alternatives)
    assert not [atoms for atoms in alternatives if all(atom.search(others) for atom in atoms)]


def test_straight_quotes_make_no_text_bad() -> None:
    """What a straight quote matches, each curly one matches as well."""
    for atom in itertools.chain.from_iterable(alternatives_of_bad_text()):
        if atom.match("'") or atom.match('"'):
            assert all(atom.match(quote) for quote in "\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f")


@pytest.mark.parametrize("text", ["a & b", "&", "a &; b", "R&", "& &&", "a\tb\fc\r\nd", "<b>", "100% @x #y ~z"])
def test_common_ascii_is_simple(text: str) -> None:
    assert simple_tokenizer._is_simple(text)
    assert whitespace_clean(basic_clean(text)) == whitespace_clean(simple_tokenizer._straighten(text))


@pytest.mark.parametrize(
    "text", ["ein schöner Hund", "une école à Paris", "собака", "狗", "σκύλος", "कुत्ता", "dog 🐶", "a dog’s “café”"]
)
def test_common_text_in_other_languages_is_simple(text: str) -> None:
    assert simple_tokenizer._is_simple(text)


@pytest.mark.parametrize("text", ["&amp", "&#38;", "R&D", "a\x0bb", "\x7f", "\x1b[0m", "e\u0301", "x\n\u00c2 y", "Ã©"])
def test_what_ftfy_might_change_is_not_called_simple(text: str) -> None:
    assert not simple_tokenizer._is_simple(text)


# --- Special words


WORDS = ["<|startoftext|>", "<|endoftext|>"]
DRESSES = [
    *WORDS,
    *[word.upper() for word in WORDS],
    *[word.replace("<", "&lt;").replace(">", "&gt;") for word in WORDS],
    *[word.replace("<", "&amp;lt;").replace("|", "&vert;") for word in WORDS],
    *["".join(f"&#{ord(c)};" for c in word) for word in WORDS],
    *["".join(f"&#x{ord(c):x};" for c in word) for word in WORDS],
    *["".join(chr(ord(c) + 0xFEE0) for c in word) for word in WORDS],
    *[word.replace("of", "o\x00f") for word in WORDS],
    *[word.replace("of", "o\x1b[31mf") for word in WORDS],
    *[word.replace("<|", "<|\ufeff") for word in WORDS],
    *[word.replace("st", "\ufb06") for word in WORDS],
    *[word * 3 for word in WORDS],
    *[f"a{word}b" for word in WORDS],
    *[f"é{word}" for word in WORDS],
]


@pytest.mark.parametrize("text", DRESSES)
def test_special_words_give_special_ids_only_if_asked_to(tokenizer: SimpleTokenizer, text: str) -> None:
    assert {START, END} & set(tokenizer.encode(text))
    ordinary = tokenizer.encode(text, special_words=False)
    assert ordinary
    assert not {START, END} & set(ordinary)
    row = token_ids(text, special_words=False, tokenizer=tokenizer)[0]
    assert (row == START).sum() == (row == END).sum() == 1


def test_special_words_as_ordinary_text(tokenizer: SimpleTokenizer) -> None:
    ids = tokenizer.encode("the <|endoftext|> of", special_words=False)
    assert tokenizer.decode(ids) == "the <| endoftext |> of "
    assert ids == tokenizer.encode("the <| endoftext |> of")


def test_both_readings_keep_apart_in_memory(tokenizer: SimpleTokenizer) -> None:
    readings = [tokenizer.encode("<|endoftext|>", special_words=special) for special in (True, False, True, False)]
    assert readings[0] == readings[2] == [END]
    assert readings[1] == readings[3] != [END]


def test_long_s_makes_no_special_word(tokenizer: SimpleTokenizer) -> None:
    # `regex` folds ſ to s, so OpenAI's pattern takes this for one piece; the vocabulary does not know it.
    ids = tokenizer.encode("<|ſtartoftext|>")
    assert START not in ids
    assert ids != tokenizer.encode("<|ſtartoftext|>", special_words=False)


# --- Subclasses


class WithMask(SimpleTokenizer):
    """A word more, added as users of OpenAI's class do it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder["<mask>"] = len(self.encoder)
        self.cache["<mask>"] = "<mask>"
        self.pat = regex.compile(r"<mask>|" + self.pat.pattern, regex.IGNORECASE)


def test_a_subclass_may_add_words() -> None:
    masked = WithMask()
    assert masked.encode("a <MASK> dog") == [320, 49408, 1929]
    assert masked.decode([320, 49408]) == "a <mask>"
    assert 49408 not in masked.encode("a <mask> dog", special_words=False)


def test_a_pattern_may_span_white_space(tokenizer: SimpleTokenizer) -> None:
    spaced = SimpleTokenizer()
    before = spaced.encode("hello world")
    spaced.pat = regex.compile(r".+")
    assert spaced.encode("hello \n world") == [tokenizer.encoder[s] for s in tokenizer.bpe("helloĠworld").split(" ")]
    assert before == [3306, 1002]


def test_a_subclass_may_split_words_its_own_way() -> None:
    class Spelling(SimpleTokenizer):
        def bpe(self, token: str) -> str:
            return " ".join([*token[:-1], token[-1] + "</w>"])

    assert Spelling().decode(Spelling().encode("dog")) == "dog "
    assert len(Spelling().encode("dog")) == 3


def test_token_ids_uses_the_encode_it_is_given() -> None:
    class Shouting(SimpleTokenizer):
        def encode(self, text: str) -> list[int]:  # type: ignore[override]  # as written for OpenAI's class
            return [*super().encode(text), *super().encode("!")]

    assert token_ids("dog", 5, tokenizer=Shouting()).tolist() == [[START, 1929, 256, END, 0]]


# --- Memory and threads


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tokenizer: SimpleTokenizer) -> None:
    monkeypatch.setattr(simple_tokenizer, "REMEMBERED_CHUNKS", 10)
    small = SimpleTokenizer()
    rng = random.Random(3)
    for _ in range(300):
        text = "".join(rng.choices("abcdefgh", k=rng.randint(3, 100)))
        assert small.encode(text) == tokenizer.encode(text)
        assert len(small._known[True]) <= 10
        assert len(small.cache) <= 10
        assert max(map(len, [*small.cache, *small._known[True]])) <= 64
    assert small.encode("<|endoftext|>") == [END]
    masked = WithMask()
    for number in range(100):
        masked.encode("qxz" * (1 + number % 9) + f"jq{number}")
    assert masked.encode("<mask>") == [49408]


def test_concurrent_encodes_agree(monkeypatch: pytest.MonkeyPatch, tokenizer: SimpleTokenizer) -> None:
    monkeypatch.setattr(simple_tokenizer, "REMEMBERED_CHUNKS", 20)
    rng = random.Random(4)
    texts = [" ".join("".join(rng.choices("abcdeé", k=rng.randint(1, 8))) for _ in range(8)) for _ in range(300)]
    expected = [tokenizer.encode(text) for text in texts]
    shared = SimpleTokenizer()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shared.encode, texts * 4)) == expected * 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
def test_copies_work(duplicate: Any) -> None:
    original = SimpleTokenizer()
    original.encode("a café")
    assert duplicate(original).encode("a café <|endoftext|>") == original.encode("a café <|endoftext|>")


def test_the_default_tokenizer_is_shared() -> None:
    assert default_tokenizer() is default_tokenizer()


# --- Rows


def test_token_ids_of_one_text() -> None:
    rows = token_ids("hello world")
    assert rows.shape == (1, 77)
    assert rows.dtype == np.int32
    assert rows.flags.writeable
    assert rows[0, :5].tolist() == [START, 3306, 1002, END, 0]
    assert not rows[0, 4:].any()


def test_token_ids_of_many_texts() -> None:
    texts = ["a dog", "", "two cats"]
    rows = token_ids(texts, context_length=6)
    assert rows.tolist() == [[START, 320, 1929, END, 0, 0], [START, END, 0, 0, 0, 0], [START, 1237, 3989, END, 0, 0]]
    assert token_ids(tuple(texts), 6).tolist() == token_ids(iter(texts), 6).tolist() == rows.tolist()
    assert token_ids(np.array(texts), 6).tolist() == rows.tolist()
    assert texts == ["a dog", "", "two cats"]


def test_token_ids_of_no_text() -> None:
    assert token_ids([]).shape == (0, 77)
    assert token_ids([]).dtype == np.int32


def test_too_long() -> None:
    fits, long = "dog " * 75, "Dog " * 76
    assert token_ids(fits)[0, -1] == END
    with pytest.raises(TextTooLongError) as caught:
        token_ids(["a", "b", long])
    message = str(caught.value)
    assert "texts[2] ('Dog Dog" in message
    assert "78 tokens with start and end" in message
    assert "the context length is 77" in message
    assert "truncate=True" in message
    assert len(message) < 200
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, ClipError)


def test_truncation_ends_with_the_end_id() -> None:
    row = token_ids("1 2 3 4 5", 4, truncate=True)[0]
    assert row.tolist() == [START, *token_ids("1 2", 4)[0, 1:3].tolist(), END]
    assert token_ids("dog", 1, truncate=True).tolist() == [[END]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "texts must be a str or a sequence of str, not NoneType"),
        (5, "not int"),
        (b"a dog", r"not bytes; decode it first: value.decode\('utf-8'\)"),
        (["a", None], r"texts\[1\] must be a str, not NoneType"),
        ([b"a"], r"texts\[0\] must be a str, not bytes; decode it first"),
        ([["a"]], r"texts\[0\] must be a str, not list"),
    ],
)
def test_what_is_no_text(texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        token_ids(texts)


@pytest.mark.parametrize("value", [None, b"dog", 5, ["dog"]])
def test_encode_takes_only_str(tokenizer: SimpleTokenizer, value: Any) -> None:
    with pytest.raises(TypeError, match="a text must be a str, not"):
        tokenizer.encode(value)


def test_context_length_has_a_limit() -> None:
    with pytest.raises(ConfigError, match="context_length is 0"):
        token_ids("dog", 0)


# --- The rest of OpenAI's names


def test_decode(tokenizer: SimpleTokenizer) -> None:
    assert tokenizer.decode(token_ids("It's a café!", 10)[0]) == "<|startoftext|>it 's a café ! <|endoftext|>!!!"
    assert tokenizer.decode([tokenizer.encoder["Ã"]]) == "\ufffd"  # half of a two-byte character
    assert tokenizer.decode([]) == ""
    with pytest.raises(KeyError):
        tokenizer.decode([49408])


def test_get_pairs() -> None:
    assert get_pairs(("d", "o", "g</w>")) == {("d", "o"), ("o", "g</w>")}


def test_pattern_splits_as_ascii_pattern_does(tokenizer: SimpleTokenizer) -> None:
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choices("abst' 12<|>_-", k=rng.randint(0, 20))) + rng.choice([*WORDS, ""])
        assert tokenizer.pat.findall(text) == simple_tokenizer._ASCII_PIECES[True].findall(text)


def test_bytes_to_unicode_prints() -> None:
    table = bytes_to_unicode()
    assert len(set(table.values())) == 256
    assert all(c.isprintable() and not c.isspace() and unicodedata.category(c) != "Cc" for c in table.values())
