"""Laws of the tokenizer, for any text."""

from __future__ import annotations

import ftfy.badness
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip import simple_tokenizer
from clip.simple_tokenizer import SimpleTokenizer, basic_clean, default_tokenizer, token_ids, whitespace_clean

START, END = 49406, 49407
SEAMS = [
    "&amp;",
    "&lt;",
    "&#x27;",
    "&",
    "<|endoftext|>",
    "<|STARTOFTEXT|>",
    "</w>",
    "'s",
    "’LL",
    "Σ",
    "İ",
    "é",
    "e\u0301",
]
SEAMS += [
    "Ã©",
    "â€™",
    "Â ",
    "\n",
    "\r\n",
    "\u2028",
    "\x85",
    "\x1c",
    "\x00",
    "\ud83d",
    "\udc36",
    "ﬁ",
    "　",
    "Ａ",
    "🏳️‍🌈",
    "한",
    "狗",
]

texts = st.lists(
    st.one_of(
        st.text(st.characters(), max_size=8),
        st.text(st.characters(max_codepoint=0x24F), max_size=8),
        st.sampled_from(SEAMS),
    )
).map("".join)
ascii_texts = st.text(st.characters(max_codepoint=0x7F))


def without_short_cuts(text: str, *, special_words: bool) -> list[int]:
    """The definition: clean all, split all with `regex`, merge all."""
    tokenizer = default_tokenizer()
    cleaned = whitespace_clean(basic_clean(text)).lower()
    ids = []
    for piece in simple_tokenizer._unicode_pieces(special_words).findall(cleaned):
        if special_words and piece in ("<|startoftext|>", "<|endoftext|>"):
            ids.append(tokenizer.encoder[piece])
            continue
        token = "".join(tokenizer.byte_encoder[byte] for byte in piece.encode())
        symbols = simple_tokenizer._merge([*token[:-1], token[-1] + "</w>"], tokenizer._ranks)
        ids += [tokenizer.encoder[symbol] for symbol in symbols]
    return ids


@settings(deadline=None, max_examples=300)
@given(texts, st.booleans())
@example("x\nÂ y", True)
@example("\u0130\u03a3\u00ad \u03a3", False)
def test_short_cuts_change_nothing(text: str, special_words: bool) -> None:
    expected = without_short_cuts(text, special_words=special_words)
    assert default_tokenizer().encode(text, special_words=special_words) == expected
    assert default_tokenizer().encode(text, special_words=special_words) == expected  # from memory


@settings(deadline=None, max_examples=300)
@given(texts)
def test_the_short_way_of_cleaning_cleans(text: str) -> None:
    assert whitespace_clean(basic_clean(text)) == whitespace_clean(simple_tokenizer._clean(text))


@settings(deadline=None, max_examples=200)
@given(texts)
def test_text_without_suspects_is_not_bad(text: str) -> None:
    assert not ftfy.badness.is_bad(simple_tokenizer._SUSPECTS.sub("", text))


@settings(deadline=None, max_examples=300)
@given(texts)
def test_decode_gives_the_cleaned_pieces_each_with_a_space(text: str) -> None:
    tokenizer = default_tokenizer()
    cleaned = whitespace_clean(basic_clean(text)).lower()
    pieces = simple_tokenizer._unicode_pieces(False).findall(cleaned)
    assert tokenizer.decode(tokenizer.encode(text, special_words=False)) == "".join(piece + " " for piece in pieces)


@settings(deadline=None, max_examples=300)
@given(ascii_texts)
def test_encoding_what_was_decoded_gives_the_same_ids(text: str) -> None:
    tokenizer = default_tokenizer()
    ids = tokenizer.encode(text, special_words=False)
    assert tokenizer.encode(tokenizer.decode(ids), special_words=False) == ids


@settings(deadline=None, max_examples=300)
@given(texts)
def test_ordinary_text_has_no_special_ids(text: str) -> None:
    assert not {START, END} & set(default_tokenizer().encode(text, special_words=False))


@settings(deadline=None, max_examples=200)
@given(st.lists(texts, max_size=4), st.integers(1, 30))
def test_rows_are_the_ids_padded_or_cut(many: list[str], context_length: int) -> None:
    rows = token_ids(many, context_length, truncate=True)
    assert rows.shape == (len(many), context_length)
    for text, row in zip(many, rows, strict=True):
        ids = [START, *default_tokenizer().encode(text), END]
        if len(ids) > context_length:
            ids = [*ids[: context_length - 1], END]
        assert row.tolist() == ids + [0] * (context_length - len(ids))


@pytest.mark.parametrize("special_words", [True, False])
def test_a_fresh_tokenizer_and_a_used_one_agree(special_words: bool) -> None:
    sentence = " ".join(SEAMS) + "".join(SEAMS)
    fresh = SimpleTokenizer().encode(sentence, special_words=special_words)
    assert fresh == default_tokenizer().encode(sentence, special_words=special_words)
