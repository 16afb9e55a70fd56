"""Find the names of a list in texts."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from maskft.annotate.code import code_digest
from maskft.annotate.spans import Span
from maskft.extras import optional
from maskft.strategy.scripts import spaceless

_NOT_SPACE = re.compile(r"\S+")


class Gazetteer:
    """Find the names of a list, as whole words, the longest at each place; for ``Entities``.

    An Aho-Corasick automaton (ahocorasick_rs) reads each text once, however long the list. A name
    does not begin or end within a word. Scripts that are written without spaces (Chinese, Japanese,
    Thai...) do not show where words end: there a name is found wherever its characters occur.
    Spaces between the words of a name may be of any width, line breaks too. Names and texts are
    compared in Unicode's form NFC, so that accents, Korean syllables and the like are found however
    they are encoded.

    A name that is inflected, or written together with other words, is not found: Korean particles
    and Arabic prepositions are part of the word. ``suffixes`` and ``prefixes`` name those that may
    be there; the span is that of the name alone.

    Args:
        names: what to find; blank ones are left out.
        ignore_case: "paris" is found for "Paris", "STRASSE" for "Straße".
        prefixes: what may be between the beginning of a word and a name in it, such as the Arabic
            ("و", "ب", "ل", "ال"). One of them at a time.
        suffixes: likewise behind a name, such as the Korean ("은", "는", "이", "가", "에서").

    Raises:
        ValueError: no names. TypeError: names or affixes that are not strings, or one string in
        place of them. ModuleNotFoundError: ahocorasick_rs is not installed.

    Examples:
        >>> from maskft.annotate import Gazetteer
        >>> Gazetteer(["New York", "York"])(["from New York to York"])
        [[(5, 13), (17, 21)]]
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        ignore_case: bool = False,
        prefixes: Iterable[str] = (),
        suffixes: Iterable[str] = (),
    ) -> None:
        self.ignore_case = ignore_case
        self.names = self._plain_list("names", names)
        self.prefixes = self._plain_list("prefixes", prefixes)
        self.suffixes = self._plain_list("suffixes", suffixes)
        if not self.names:
            raise ValueError("the list of names is empty")
        self._automaton = optional("ahocorasick_rs", "gazetteer").AhoCorasick(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        options = (self.names, self.ignore_case, self.prefixes, self.suffixes)
        return _gazetteer, (*options, code_digest())

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [list(self._find(text)) for text in texts]

    def _plain_list(self, argument: str, texts: Iterable[str]) -> list[str]:
        if isinstance(texts, str):
            raise TypeError(
                f"{argument} must be a list of {argument}, got the string {texts[:30]!r}"
            )
        try:
            listed = list(texts)
        except TypeError:
            raise TypeError(f"{argument} must be a list of strings, got {texts!r}") from None
        for text in listed:
            if not isinstance(text, str):
                raise TypeError(f"{argument} must be strings, got {text!r}")
        return sorted({self._plain(unicodedata.normalize("NFC", text)) for text in listed} - {""})

    def _plain(self, text: str) -> str:
        """Normalise spaces, and case where it is ignored."""
        spaced = " ".join(text.split())
        return spaced.casefold() if self.ignore_case else spaced

    def _find(self, text: str) -> Iterator[Span]:
        sources: list[Span] | None = None  # of each character of the composed text
        composed = text
        if not unicodedata.is_normalized("NFC", text):
            composed, sources = _composed(text)
        plain = self._plain(composed)
        found = [
            (begin, -end)
            for _, begin, end in self._automaton.find_matches_as_indexes(plain, overlapping=True)
            if self._may_begin(plain, begin) and self._may_end(plain, end)
        ]
        if not found:
            return
        places, last = self._places(composed, plain), 0
        for begin, end in sorted(found):  # the longest first at each place
            if begin >= last:
                last = -end
                first, behind = places[begin], places[last - 1] + 1
                if sources is not None:
                    first, behind = sources[first][0], sources[behind - 1][1]
                yield first, behind

    def _may_begin(self, plain: str, at: int) -> bool:
        return not _within_word(plain, at) or any(
            plain.startswith(prefix, at - len(prefix)) and not _within_word(plain, at - len(prefix))
            for prefix in self.prefixes
            if len(prefix) <= at
        )

    def _may_end(self, plain: str, at: int) -> bool:
        return not _within_word(plain, at) or any(
            plain.startswith(suffix, at) and not _within_word(plain, at + len(suffix))
            for suffix in self.suffixes
        )

    def _places(self, text: str, plain: str) -> Sequence[int]:
        """Locate each character of ``plain`` in ``text``."""
        if len(text) == len(plain) and not (self.ignore_case and len(text.casefold()) > len(text)):
            return range(len(text))  # nothing was cut out, and so nothing was put in
        places: list[int] = []
        for word in _NOT_SPACE.finditer(text):
            if places:
                places.append(word.start() - 1)
            within = range(word.start(), word.end())
            places += (
                [i for i in within for _ in text[i].casefold()] if self.ignore_case else within
            )
        return places


def _gazetteer(
    names: list[str], ignore_case: bool, prefixes: list[str], suffixes: list[str], code: str
) -> Gazetteer:
    return Gazetteer(names, ignore_case=ignore_case, prefixes=prefixes, suffixes=suffixes)


def _composed(text: str) -> tuple[str, list[Span]]:
    """Return ``text`` in NFC, and the part of ``text`` that each of its characters is made of."""
    composed, sources = [], list[Span]()
    begins = [i for i, character in enumerate(text) if i == 0 or _composes_with_none(character)]
    for begin, end in pairwise([*begins, len(text)]):
        part = unicodedata.normalize("NFC", text[begin:end])
        composed.append(part)
        done, last = 0, begin
        for at in range(begin + 1, end + 1):  # wherever the two sides are composed on their own
            first, rest = (unicodedata.normalize("NFC", t) for t in (text[begin:at], text[at:end]))
            if first + rest == part:
                sources += [(last, at)] * (len(first) - done)
                done, last = len(first), at
    return "".join(composed), sources


def _composes_with_none(character: str) -> bool:
    """Return whether what comes before a character is normalized without it."""
    if character.isascii():
        return True
    first = unicodedata.normalize("NFD", character)[0]
    return not unicodedata.combining(first) and first not in _second_parts()


@cache
def _second_parts() -> frozenset[str]:
    """List the characters that compose with one before them, though not combining marks."""
    found = {chr(point) for point in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # Hangul
    for point in range(0x20000):
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(chr(int(parts[1], 16)))
    return frozenset(found)


def _within_word(text: str, at: int) -> bool:
    """Say whether a word continues from the character before ``at`` to the one at it."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if not (before.isascii() and after.isascii()):
        if _is_mark(after):  # an accent or a vowel sign
            return not before.isspace()
        if spaceless(before) or spaceless(after):
            return False
    return _in_word(before) and _in_word(after)


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or _is_mark(character)


def _is_mark(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character).startswith("M")
