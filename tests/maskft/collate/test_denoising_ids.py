"""Sentinels as models were pretrained with them, and ends of sentences in all scripts."""

import pytest
import regex
from transformers import ByT5Tokenizer, T5Tokenizer

from maskft import DataCollatorForSpanCorruption
from maskft.collate.denoising_ids import sentence_ends, sentinels
from maskft.strategy.words import byte_level_form
from tests.support.families import byte_level, sentencepiece, wordpiece
from tests.support.small import build_wordpiece

SIGNS = {
    "danda": "\u0964",
    "double danda": "\u0965",
    "Arabic question mark": "\u061f",
    "Urdu full stop": "\u06d4",
    "Ethiopic full stop": "\u1362",
    "Burmese": "\u104b",
    "Chinese": "\u3002",
    "full width": "\uff01",
    "half width": "\uff61",
    "Armenian": "\u0589",
    "English": ".",
}


def pieces(*tokens):
    """A vocabulary of SentencePiece as T5's tokenizer takes it."""
    return [(token, 0.0) for token in ("<pad>", "</s>", "<unk>", "\u2581", *tokens)]


def test_sentinels_of_byt5_fall_from_its_last_byte():
    tokenizer = ByT5Tokenizer()
    assert sentinels(tokenizer) == tuple(range(258, 158, -1))
    assert sentinels(ByT5Tokenizer(extra_ids=0))[:2] == (258, 257)
    collator = DataCollatorForSpanCorruption(tokenizer, mean_span_length=20.0, rng="sample")
    batch = collator([tokenizer("a seed and an epoch make a mask. " * 4)])
    assert int((batch["input_ids"] == 258).sum()) == 1
    assert batch["labels"][0, 0] == 258
    own = DataCollatorForSpanCorruption(tokenizer, sentinel_ids=range(259, 384))
    assert list(own.sentinel_ids) == list(range(259, 384))


def test_sentinels_of_t5_fall_from_the_end_of_its_vocabulary():
    tokenizer = T5Tokenizer()
    last = len(tokenizer) - 1
    assert sentinels(tokenizer) == tuple(range(last, last - 100, -1))


def test_sentinels_of_mt5_are_those_of_its_vocabulary():
    """Written with a mark; what Transformers' tokenizer adds under the same names is newer."""
    own = [f"\u2581<extra_id_{i}>" for i in reversed(range(100))]
    for extra_ids in (0, 100):
        tokenizer = T5Tokenizer(vocab=pieces("a", *own), extra_ids=extra_ids)
        assert sentinels(tokenizer) == tuple(range(104, 4, -1))


def test_sentinels_added_by_hand_rise():
    tokenizer = build_wordpiece()
    first = len(tokenizer)
    tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(12)], special_tokens=True)
    assert sentinels(tokenizer) == tuple(range(first, first + 12))


@pytest.mark.parametrize("sign", SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("family", ["byte-level", "sentencepiece", "wordpiece"])
def test_every_script_ends_its_sentences(sign, family):
    tokenizer, tokens = {
        "byte-level": lambda: (
            byte_level(" " + sign, sign),
            (byte_level_form(sign), byte_level_form(" " + sign)),
        ),
        "sentencepiece": lambda: (sentencepiece(sign, "\u2581" + sign), (sign, "\u2581" + sign)),
        "wordpiece": lambda: (wordpiece(sign), (sign,)),
    }[family]()
    found = sentence_ends(tokenizer)
    assert {tokenizer.get_vocab()[token] for token in tokens} <= set(found)
    assert tokenizer.convert_tokens_to_ids(",") not in found


def test_ends_of_sentences_are_unicode_s():
    signs = [chr(p) for p in range(0x110000) if regex.match(r"\p{Sentence_Terminal}", chr(p))]
    tokenizer = wordpiece(*signs, ",", ";", ":")
    assert len(sentence_ends(tokenizer)) == len(signs)
