"""Find the names of a list in texts."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from maskft.annotate.spans import Span
from maskft.extras import optional
from maskft.strategy.words import spaceless

_NOT_SPACE = re.compile(r"\S+")


class Gazetteer:
    """Find the names of a list, as whole words, the longest at each place; for ``Entities``.

    An Aho-Corasick automaton (ahocorasick_rs) reads each text once, however long the list. A name
    does not begin or end within a word. Scripts that are written without spaces (Chinese, Japanese,
    Thai...) do not show where words end: there a name is found wherever its characters occur.
    Spaces between the words of a name may be of any width, line breaks too.

    Args:
        names: what to find; blank ones are left out.
        ignore_case: "paris" is found for "Paris", "STRASSE" for "Straße".

    Raises:
        ValueError: no names. TypeError: names that are not strings, or one string in place of
        them. ModuleNotFoundError: ahocorasick_rs is not installed.

    Example:
        >>> from maskft.annotate import Gazetteer
        >>> Gazetteer(["New York", "York"])(["from New York to York"])
        [[(5, 13), (17, 21)]]
    """

    def __init__(self, names: Iterable[str], *, ignore_case: bool = False) -> None:
        self.ignore_case = ignore_case
        if isinstance(names, str):
            raise TypeError(f"names must be a list of names, got the string {names[:30]!r}")
        names = list(names)
        if not all(isinstance(name, str) for name in names):
            bad = next(name for name in names if not isinstance(name, str))
            raise TypeError(f"names must be strings, got {type(bad).__name__}")
        self.names = sorted({self._plain(name) for name in names} - {""})
        if not self.names:
            raise ValueError("the list of names is empty")
        self._automaton = optional("ahocorasick_rs", "gazetteer").AhoCorasick(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return _gazetteer, (self.names, self.ignore_case)

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [list(self._find(text)) for text in texts]

    def _plain(self, text: str) -> str:
        """Normalise spaces, and case where it is ignored."""
        spaced = " ".join(text.split())
        return spaced.casefold() if self.ignore_case else spaced

    def _find(self, text: str) -> Iterator[Span]:
        plain = self._plain(text)
        found = [
            (begin, -end)
            for _, begin, end in self._automaton.find_matches_as_indexes(plain, overlapping=True)
            if not (_within_word(plain, begin) or _within_word(plain, end))
        ]
        if not found:
            return
        places, last = self._places(text, plain), 0
        for begin, end in sorted(found):  # the longest first at each place
            if begin >= last:
                last = -end
                yield places[begin], places[last - 1] + 1

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


def _gazetteer(names: list[str], ignore_case: bool) -> Gazetteer:
    return Gazetteer(names, ignore_case=ignore_case)


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
