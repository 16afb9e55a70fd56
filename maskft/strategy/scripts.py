"""Know the scripts written without spaces between words, and their characters in UTF-8.

Byte-level vocabularies cut characters: a token may end within one (``E0 B8``) or be the rest of one
(``81``). ``cut_character`` and ``continuation`` say what of a character a token holds, as a number
that a tensor can hold too.
"""

import unicodedata
from bisect import bisect_right
from functools import cache

import numpy as np

_SPACELESS = (  # with the punctuation that goes with them
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (
        0x2E80,
        0x33FF,
    ),  # kana, bopomofo, punctuation; Hangul compatibility jamo come along
    (0x3400, 0x9FFF),  # Han
    (0xA000, 0xA4CF),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0xFF00, 0xFFEF),  # full and half width
    (0x11700, 0x1174F),  # Ahom
    (0x16FE0, 0x16FFF),
    (0x17000, 0x18DFF),  # Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # kana, Nushu
    (0x20000, 0x3FFFF),  # Han
)
_LEADS = ((0xC0, 2, 0x1F), (0xE0, 3, 0x0F), (0xF0, 4, 0x07), (0xF8, 1, 0))  # from, bytes, payload
# Kinds of a character; 0: its script has spaces. A LINK is a mark that takes the letter behind it
# into its cluster: it makes that letter a subscript.
LETTER, MARK, LINK = 1, 2, 3
_LINKS = (0x1039, 0x17D2, 0x1A60, 0x1B44, 0xA9C0)  # Myanmar, Khmer, Tai Tham, Balinese, Javanese
_MARKS = (0x0E33, 0x0EB3)  # Thai and Lao vowel signs AM, which Unicode calls letters


def kind_of(character: str) -> int:
    """Return LETTER (or other sign), MARK or LINK of a spaceless script, 0 for what is of none."""
    changes, found = _kinds()
    return found[bisect_right(changes, ord(character))]


def spaceless(character: str) -> bool:
    """Return whether it is a letter or sign, not a mark, of a script written without spaces."""
    return kind_of(character) == LETTER


def kinds() -> tuple[np.ndarray, np.ndarray]:
    """Return the code points where the kind changes, int32 [n], and the kinds, uint8 [n + 1]."""
    changes, found = _kinds()
    return np.array(changes, np.int32), np.array(found, np.uint8)


@cache
def _kinds() -> tuple[list[int], list[int]]:
    changes, found = list[int](), [0]
    for low, high in _SPACELESS:
        marks_too = high - low < 0x1000  # Han and Tangut have none
        for point in range(low, high + 1) if marks_too else (low,):
            is_mark = point in _MARKS or unicodedata.category(chr(point)).startswith("M")
            kind = LINK if point in _LINKS else MARK if is_mark else LETTER
            if kind != found[-1]:
                changes.append(point)
                found.append(kind)
        changes.append(high + 1)
        found.append(0)
    return changes, found


def cut_character(text: bytes) -> bytes:
    """Return the bytes of a character that the end of ``text`` cuts short, if any."""
    for held in range(1, min(3, len(text)) + 1):
        byte = text[-held]
        if byte >= 0xC0:
            return text[-held:] if held < _lead(byte)[0] else b""
        if byte < 0x80:
            break
    return b""


def continuation(text: bytes) -> bytes:
    """Return the bytes at the beginning of ``text`` that continue a character, three at most."""
    held = 0
    while held < min(3, len(text)) and 0x80 <= text[held] < 0xC0:
        held += 1
    return text[:held]


def cut_code(cut: bytes) -> int:
    """Pack the bits of a cut character's code point, and behind them how many bytes it lacks."""
    length, payload = _lead(cut[0])
    return (_bits(cut[0] & payload, cut[1:]) << 2) | (length - len(cut))


def continuation_code(held: bytes) -> int:
    """Pack the bits that the bytes add to a code point, and behind them how many they are."""
    return (_bits(0, held) << 2) | len(held)


def share_of_letters(cut: bytes) -> float:
    """Return the share of spaceless scripts among the characters that begin with these bytes."""
    code = cut_code(cut)
    shift = 6 * (code & 3)
    low = (code >> 2) << shift
    high = min(low + (1 << shift) - 1, 0x10FFFF)
    low = max(low, {3: 0x800, 4: 0x10000}.get(_lead(cut[0])[0], 0x80))
    both = sum(max(0, min(high, last) - max(low, first) + 1) for first, last in _SPACELESS)
    return both / max(high - low + 1, 1)


def _lead(byte: int) -> tuple[int, int]:
    """Return the length of the character that ``byte`` begins, and a mask of its payload."""
    return next((length, bits) for first, length, bits in reversed(_LEADS) if byte >= first)


def _bits(before: int, continuation_bytes: bytes) -> int:
    for byte in continuation_bytes:
        before = (before << 6) | (byte & 0x3F)
    return before
