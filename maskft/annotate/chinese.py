"""Find Chinese words, which no space separates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from maskft.annotate.code import NamedByCode
from maskft.annotate.spans import Span


@dataclass(frozen=True)
class JiebaWords(NamedByCode):
    """Find Chinese words, for ``WordIds``.

    Args:
        segment: the ``jieba`` module, or whatever has ``tokenize(text)`` that yields (word, begin,
            end).

    Examples:
        >>> import jieba
        >>> from maskft.annotate import JiebaWords
        >>> jieba.setLogLevel("WARNING")
        >>> JiebaWords(jieba)(["我来到北京"])
        [[(0, 1), (1, 3), (3, 5)]]
    """

    segment: Any
    version: str | None = field(init=False, repr=False)  # so that another version annotates again

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", getattr(self.segment, "__version__", None))

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [
            [(begin, end) for word, begin, end in self.segment.tokenize(text) if word.strip()]
            for text in texts
        ]
