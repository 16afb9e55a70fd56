"""Whole words: what a tokenizer's vocabulary says about where they begin and end.

A vocabulary says where words begin: WordPiece marks the pieces that go on (``##``), byte-level BPE
and SentencePiece the ones that begin (a leading space, written ``Ġ`` or ``▁``), others the ones
that end (``</w>``) or do not end (``@@``) a word. ``word_table`` reads those marks once into two
bits per id, and ``maskkernels.word_units`` numbers the words of a batch from them.

What a word is follows the published practice of each family. WordPiece: every token without ``##``
begins one, so punctuation is a word of its own (Google's BERT). The others: text between spaces, so
punctuation stays with its word (fairseq's RoBERTa); in scripts written without spaces (Chinese,
Japanese, Thai...) every token that begins with a character of theirs begins a word.
"""

import json
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from maskkernels.units import ENDS, STARTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = 0.01  # a mark counts when this share of the vocabulary carries it
_SPACELESS = (  # scripts without spaces between words, and the punctuation that goes with them
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x31FF),  # CJK radicals and punctuation, kana, bopomofo; Hangul jamo come along
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),  # fullwidth forms
    (0x20000, 0x3FFFF),
)


def word_table(tokenizer: "PreTrainedTokenizerBase") -> Tensor:
    """Return what each id of a vocabulary says about word boundaries.

    Returns:
        uint8 [V] with V = max(len(tokenizer), highest id + 1): bit ``STARTS`` where the token
        begins a word, bit ``ENDS`` where the token after it does. An added token is a word.

    Raises:
        ValueError: the vocabulary has no word marks, as those of protein and DNA models do not.
    """
    vocabulary = tokenizer.get_vocab()
    flags = _family(tokenizer, vocabulary)
    size = max(len(tokenizer), max(vocabulary.values(), default=-1) + 1)
    table = np.zeros(size, dtype=np.uint8)
    for token, i in vocabulary.items():
        table[i] = flags(token)
    for i, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if not added.special:
            table[i] = STARTS | ENDS
    return torch.from_numpy(table)


def _family(
    tokenizer: "PreTrainedTokenizerBase", vocabulary: dict[str, int]
) -> Callable[[str], int]:
    """The function that turns a token of this tokenizer into its flags."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = set(tokenizer.all_special_tokens)
    ordinary = [token for token in vocabulary if token not in special]
    if backend is not None:
        model, steps = backend.model, _steps(backend.pre_tokenizer) | _steps(backend.decoder)
        kind = type(model).__name__
        if kind == "WordPiece":
            prefix = model.continuing_subword_prefix
            return lambda token: 0 if token.startswith(prefix) else STARTS
        if kind == "WordLevel" and any(len(token) > 1 for token in ordinary):
            return lambda token: STARTS
        if "ByteLevel" in steps:
            return lambda token: _spaced(_from_byte_level(token))
        if getattr(model, "end_of_word_suffix", None):
            suffix = model.end_of_word_suffix
            return lambda token: ENDS if token.endswith(suffix) else 0
        if getattr(model, "continuing_subword_prefix", None):
            prefix = model.continuing_subword_prefix
            return lambda token: 0 if token.startswith(prefix) else STARTS
        if "Metaspace" in steps:
            return lambda token: _spaced(_from_metaspace(token))
    return _by_vocabulary(tokenizer, ordinary)


def _by_vocabulary(
    tokenizer: "PreTrainedTokenizerBase", ordinary: list[str]
) -> Callable[[str], int]:
    """Decide by the mark that most tokens carry."""
    marks: dict[str, Callable[[str], int]] = {
        "##": lambda token: 0 if token.startswith("##") else STARTS,
        "▁": lambda token: _spaced(_from_metaspace(token)),
        "Ġ": lambda token: _spaced(_from_byte_level(token)),
        "</w>": lambda token: ENDS if token.endswith("</w>") else 0,
        "@@": lambda token: 0 if token.endswith("@@") else ENDS,
    }
    leading = ("##", "▁", "Ġ")
    counts = {
        mark: sum(t.startswith(mark) if mark in leading else t.endswith(mark) for t in ordinary)
        for mark in marks
    }
    best = max(counts, key=lambda mark: counts[mark])
    if counts[best] > _MARKS * len(ordinary):
        return marks[best]
    if " " in ordinary:  # characters or bytes, the space among them
        all_bytes = {chr(byte) for byte in range(256)}
        if all_bytes <= set(ordinary):  # ByT5: a token a byte
            return lambda token: _spaced(token.encode("latin-1" if token in all_bytes else "utf-8"))
        return lambda token: _spaced(token.encode())
    raise ValueError(
        f"the vocabulary of {type(tokenizer).__name__} has no word marks, so whole words cannot be "
        'told from it. Mask single tokens (strategy="random"), or give every example an '
        "offset_mapping or word_ids column."
    )


def _steps(component: Any) -> set[str]:
    """The types of all nested parts of a tokenizers component."""
    if component is None:
        return set()

    def types(state: Any) -> Iterable[str]:
        if isinstance(state, dict):
            if isinstance(state.get("type"), str):
                yield state["type"]
            for value in state.values():
                yield from types(value)
        elif isinstance(state, list):
            for value in state:
                yield from types(value)

    return set(types(json.loads(component.__getstate__())))


@cache
def _byte_of() -> dict[str, int]:
    """The byte behind each character of byte-level BPE: printable ones are themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}


def _from_byte_level(token: str) -> bytes:
    byte_of = _byte_of()
    if all(c in byte_of for c in token):
        return bytes(byte_of[c] for c in token)
    return token.encode("utf-8", "surrogatepass")


def _from_metaspace(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode("utf-8", "surrogatepass")


def _spaced(text: bytes) -> int:
    """The flags of a token whose text begins with a space where a word begins."""
    flags = 0
    if text[:1].isspace() or _begins_spaceless(text):
        flags |= STARTS
    if text.strip(b" ") and (text[-1:].isspace() or _ends_spaceless(text)):
        flags |= ENDS  # a lone space belongs to the word after it; a line break does not
    return flags


def _begins_spaceless(text: bytes) -> bool:
    """The first character, perhaps cut short by the end of the token, is of a spaceless script."""
    if not text or text[0] < 0xE0:  # one- and two-byte characters, or the rest of a longer one
        return False
    length = 3 if text[0] < 0xF0 else 4
    character = text[:length].decode("utf-8", "ignore")
    if character:
        return spaceless(character[0])
    return 0xE3 <= text[0] <= 0xE9 or text[0] == 0xF0


def _ends_spaceless(text: bytes) -> bool:
    """Return whether the last character is complete and of a spaceless script."""
    try:
        return spaceless(text[-4:].decode("utf-8", "surrogateescape")[-1])
    except UnicodeDecodeError:
        return False


def spaceless(character: str) -> bool:
    point = ord(character)
    return any(low <= point <= high for low, high in _SPACELESS) and not unicodedata.category(
        character
    ).startswith("M")
