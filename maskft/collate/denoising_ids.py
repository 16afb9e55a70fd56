"""Look up the ids of sentinels and of ends of sentences in a vocabulary."""

from functools import cache

import regex  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerBase

from maskft.strategy.words import byte_level_form

SENTINEL = regex.compile(r"\u2581?<extra_id_(\d+)>")
_WORD_MARKS = "\u0120\u2581"  # what byte-level BPE and SentencePiece write for a space
_BYT5_OFFSET, _BYT5_SENTINELS = 3, 100  # the special tokens in front of ByT5's bytes


def sentinels(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of ``<extra_id_0>``, ``<extra_id_1>``..., as models were pretrained.

    T5, mT5, UMT5 and UL2: by the names, whatever their ids, which fall from the end of T5's
    vocabulary and rise where they were added by hand. mT5's own are written ``▁<extra_id_0>``;
    where a number has two tokens, the one with the lower id was there in pretraining. ByT5: ids
    258, 257, 256..., with which it was pretrained (they are bytes, of which the first 11 are none
    of UTF-8's), not the ``<extra_id_0>`` of its tokenizer, which no pretrained model has seen.

    Raises:
        ValueError: the tokenizer has none; says how to add them.
    """
    vocabulary = tokenizer.get_vocab()
    if all(vocabulary.get(chr(byte)) == byte + _BYT5_OFFSET for byte in range(256)):
        last = _BYT5_OFFSET + 255
        return tuple(range(last, last - _BYT5_SENTINELS, -1))
    found: dict[int, int] = {}
    for token, i in vocabulary.items():
        if match := SENTINEL.fullmatch(token):
            number = int(match[1])
            found[number] = min(i, found.get(number, i))
    if not found:
        raise ValueError(
            "the tokenizer has no sentinels <extra_id_0>, <extra_id_1>...: add them with "
            "tokenizer.add_tokens([f'<extra_id_{i}>' for i in range(100)], special_tokens=True) "
            "and model.resize_token_embeddings(len(tokenizer)), or give sentinel_ids"
        )
    return tuple(found[number] for number in sorted(found))


def sentence_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of the marks that end sentences, with and without a space in front.

    Those of all scripts, as Unicode's property Sentence_Terminal lists them: full stops, question
    and exclamation marks, the danda, the Arabic and Urdu stops, the Ethiopic ones... A mark that
    the vocabulary has only in pieces (bytes) has no id and ends nothing.

    Raises:
        ValueError: the tokenizer has none; says what to do.
    """
    vocabulary = tokenizer.get_vocab()
    texts = [
        mark + form
        for end in _sentence_terminals()
        for form in (end, byte_level_form(end))
        for mark in ("", *_WORD_MARKS)
    ]
    found = sorted({vocabulary[text] for text in texts if text in vocabulary})
    if not found:
        raise ValueError(
            "the tokenizer has no token for the end of a sentence (. ! ?): give sentence_end_ids, "
            "or permute_sentences=False"
        )
    return tuple(found)


@cache
def _sentence_terminals() -> tuple[str, ...]:
    every = "".join(map(chr, range(0x20000)))  # the property has none in the planes behind
    return tuple(regex.findall(r"\p{Sentence_Terminal}", every))
