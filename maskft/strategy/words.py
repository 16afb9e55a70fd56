"""Read from a tokenizer's vocabulary where whole words begin and end.

A vocabulary says where words begin: WordPiece marks the pieces that go on (``##``), byte-level BPE
and SentencePiece the ones that begin (a leading space, written ``Ġ`` or ``▁``), others the ones
that end (``</w>``) or do not end (``@@``) a word. ``read_vocabulary`` reads those marks once.

What a word is follows the published practice of each family. WordPiece: every token without ``##``
begins one, so punctuation is a word of its own (Google's BERT). The others: what is between spaces,
so punctuation belongs to its word (fairseq's RoBERTa). In all families, scripts written without
spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan...) are words by character: a token
that begins with a letter of theirs begins a word, and marks (vowel signs, tones) belong to the
letter before them, as do subscript letters (a Khmer coeng and the letter behind it). These are the
extended grapheme clusters of Unicode's Annex 29, with subscripts in addition. Where a tokenizer
finds the words of such a script itself (Japanese by MeCab), its marks decide.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from maskft.strategy.scripts import (
    LETTER,
    LINK,
    MARK,
    continuation,
    continuation_code,
    cut_character,
    cut_code,
    kind_of,
    share_of_letters,
)
from maskkernels.units import ENDS, STARTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = 0.01  # a mark counts when this share of the vocabulary carries it
_SEGMENTED = "これはひらがなのぶんです"  # words that only a tokenizer with a dictionary takes apart

# What a token says about its characters, in ``VocabularyMarks.pieces``
JOINS = 1  # begins with a mark of a spaceless script
CUT = 2  # holds the beginning of one character and nothing else
REST = 4  # holds the rest of a character, or part of it, and nothing else
DEPENDS = 8  # with such a token, ``flags`` alone do not tell where words begin
LINKS = 16  # ends with a mark that takes the letter behind it along: a subscript of its cluster
LETTERS = 32  # begins with a letter of a spaceless script


@dataclass(frozen=True)
class VocabularyMarks:
    """Hold what the ids of a vocabulary say about words, an entry for each id.

    Attributes:
        flags: uint8 [V], what ``maskkernels.word_units`` takes: STARTS where the token begins a
            word, ENDS where the one after it does.
        pieces: uint8 [V], JOINS, CUT, REST, DEPENDS, LINKS and LETTERS.
        tails, heads: int32 [V], the part of a character at the end and at the beginning of the
            token (``scripts.cut_code`` and ``continuation_code``).
    """

    flags: np.ndarray
    pieces: np.ndarray
    tails: np.ndarray
    heads: np.ndarray


def word_table(tokenizer: "PreTrainedTokenizerBase") -> Tensor:
    """Return what each id of a vocabulary says about word boundaries.

    Returns:
        uint8 [V] with V = max(len(tokenizer), highest id + 1): bit ``STARTS`` where the token
        begins a word, bit ``ENDS`` where the token after it does. An added token is a word. A token
        that holds part of a character counts as the script that most such characters are of;
        ``WordMarks`` joins the parts first.

    Raises:
        ValueError: the vocabulary has no word marks, as those of protein and DNA models do not.
    """
    marks = read_vocabulary(tokenizer)
    if marks is None:
        raise no_word_marks(tokenizer)
    return torch.from_numpy(marks.flags)


def read_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> VocabularyMarks | None:
    """Return the marks of all ids, len(tokenizer) or up to the highest; None if there are none."""
    vocabulary = tokenizer.get_vocab()
    read = _family(tokenizer, vocabulary)
    if read is None:
        return None
    size = max(len(tokenizer), max(vocabulary.values(), default=-1) + 1)
    flags, pieces = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    tails, heads = np.zeros(size, np.int32), np.zeros(size, np.int32)
    for token, i in vocabulary.items():
        flags[i], text = read(token)
        if not text.isascii():
            pieces[i], tails[i], heads[i] = _pieces(text)
    for i, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if not added.special:
            flags[i], pieces[i], tails[i], heads[i] = STARTS | ENDS, 0, 0, 0
    return VocabularyMarks(flags, pieces, tails, heads)


def no_word_marks(tokenizer: Any) -> ValueError:
    return ValueError(
        f"the vocabulary of {type(tokenizer).__name__} has no word marks, so whole words cannot be "
        'told from it. Mask single tokens (strategy="random"), or give every example an '
        "offset_mapping or word_ids column."
    )


_Read = Callable[[str], tuple[int, bytes]]  # from a token to its flags and the text in it


def _family(tokenizer: "PreTrainedTokenizerBase", vocabulary: dict[str, int]) -> _Read | None:
    """Return the function that reads a token of this tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = set(tokenizer.all_special_tokens)
    ordinary = [token for token in vocabulary if token not in special]
    if backend is not None:
        model, steps = backend.model, _steps(backend.pre_tokenizer) | _steps(backend.decoder)
        kind = type(model).__name__
        prefix = getattr(model, "continuing_subword_prefix", None)
        suffix = getattr(model, "end_of_word_suffix", None)
        decode = _from_byte_level if "ByteLevel" in steps else _from_metaspace
        if kind == "WordPiece":
            return _continuing(model.continuing_subword_prefix, _segments(backend))
        if kind == "WordLevel" and any(len(token) > 1 for token in ordinary):
            return lambda token: (STARTS, b"")
        if suffix:
            return lambda token: _suffixed(token, suffix, decode)
        if "ByteLevel" in steps:
            return lambda token: _spaced(_from_byte_level(token))
        if prefix:
            return _continuing(prefix, _segments(backend))
        if "Metaspace" in steps:
            return lambda token: _spaced(_from_metaspace(token))
    return _by_vocabulary(ordinary)


def _by_vocabulary(ordinary: list[str]) -> _Read | None:
    """Decide by the mark that most tokens carry."""
    if " " in ordinary:  # characters or bytes, the space among them
        single = {token for token in ordinary if len(token) == 1}
        if len(single) == 256 and max(single) == "\xff":  # ByT5: a token a byte
            return lambda token: _spaced(bytes([ord(token)]) if token in single else token.encode())
        if 2 * len(single) > len(ordinary):
            return _character
    marks: dict[str, _Read] = {
        "##": _continuing("##", segmented=True),  # a Python tokenizer: may have a dictionary
        "▁": lambda token: _spaced(_from_metaspace(token)),
        "Ġ": lambda token: _spaced(_from_byte_level(token)),
        "</w>": lambda token: (ENDS if token.endswith("</w>") else 0, b""),
        "@@": lambda token: (0 if token.endswith("@@") else ENDS, b""),
    }
    leading = ("##", "▁", "Ġ")
    counts = {
        mark: sum(t.startswith(mark) if mark in leading else t.endswith(mark) for t in ordinary)
        for mark in marks
    }
    best = max(counts, key=lambda mark: counts[mark])
    if counts[best] > _MARKS * len(ordinary):
        return marks[best]
    if " " in ordinary:
        return _character
    return None


def _continuing(prefix: str, segmented: bool) -> _Read:
    """Read tokens of which those that continue a word carry ``prefix``; the others begin one."""

    def read(token: str) -> tuple[int, bytes]:
        goes_on = token.startswith(prefix)
        if segmented or token.isascii():
            return (0 if goes_on else STARTS), b""
        text = token.removeprefix(prefix).encode("utf-8", "surrogatepass")
        flags, _ = _spaced(text)
        return (flags if goes_on else flags | STARTS), text

    return read


def _suffixed(token: str, suffix: str, decode: Callable[[str], bytes]) -> tuple[int, bytes]:
    """Read a token of a vocabulary where the last token of a word carries ``suffix``."""
    text = decode(token.removesuffix(suffix))
    return (ENDS if token.endswith(suffix) else 0) | _spaced(text)[0], text


def _segments(backend: Any) -> bool:
    """Return whether the tokenizer splits text without spaces into words, as MeCab does."""
    if backend.pre_tokenizer is None:
        return False
    text = (
        _SEGMENTED if backend.normalizer is None else backend.normalizer.normalize_str(_SEGMENTED)
    )
    return len(backend.pre_tokenizer.pre_tokenize_str(text)) > 1


def _steps(component: Any) -> set[str]:
    """List the types of all nested parts of a tokenizers component."""
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
    """Map each character of byte-level BPE to its byte; printable ones are themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}


def byte_level_form(text: str) -> str:
    """Write ``text`` as byte-level BPE does."""
    character_of = {byte: character for character, byte in _byte_of().items()}
    return "".join(character_of[byte] for byte in text.encode())


def _from_byte_level(token: str) -> bytes:
    byte_of = _byte_of()
    if all(c in byte_of for c in token):
        return bytes(byte_of[c] for c in token)
    return token.encode("utf-8", "surrogatepass")


def _from_metaspace(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode("utf-8", "surrogatepass")


def _spaced(text: bytes) -> tuple[int, bytes]:
    """Return flags and text of a token that begins with a space where a word begins."""
    flags = 0
    if text[:1].isspace() or _begins_with(text) == LETTER:
        flags |= STARTS
    if text.strip(b" ") and (text[-1:].isspace() or _ends_with_letter(text)):
        flags |= ENDS  # a lone space belongs to the word after it; a line break does not
    return flags, text


def _character(token: str) -> tuple[int, bytes]:
    """Read a token of a vocabulary of characters: CANINE's is all of Unicode, surrogates too."""
    if len(token) == 1 and not token.isascii():
        kind = kind_of(token)
        return (STARTS | ENDS if kind == LETTER else 0), (token.encode() if kind else b"")
    return _spaced(token.encode("utf-8", "surrogatepass"))


def _pieces(text: bytes) -> tuple[int, int, int]:
    """Return (pieces, tail, head) of a token that is not ASCII: ``VocabularyMarks``."""
    cut, rest = cut_character(text), continuation(text)
    begins = _begins_with(text)
    pieces = JOINS | DEPENDS if begins in (MARK, LINK) else LETTERS if begins else 0
    pieces |= LINKS | DEPENDS if _last_kind(text) == LINK else 0
    if cut:
        pieces |= CUT if cut == text else 0
        pieces |= DEPENDS if share_of_letters(cut) else 0
    pieces |= REST if rest == text else 0
    return pieces, cut_code(cut) if cut else 0, continuation_code(rest) if rest else 0


def _begins_with(text: bytes) -> int:
    """Return the kind of the first character; if it is cut short, of most that it can be."""
    if not text or text[0] < 0xE0:  # one- and two-byte characters, or the rest of a longer one
        return 0
    character = text[: 3 if text[0] < 0xF0 else 4].decode("utf-8", "ignore")
    if character:
        return kind_of(character[0])
    cut = cut_character(text)
    return LETTER if cut and share_of_letters(cut) > 0.5 else 0


def _ends_with_letter(text: bytes) -> bool:
    """Return whether the last character is complete and a letter of a spaceless script."""
    return _last_kind(text) == LETTER


def _last_kind(text: bytes) -> int:
    """Return the kind of the last character, 0 if it is cut short."""
    return kind_of(text[-4:].decode("utf-8", "surrogateescape")[-1])
