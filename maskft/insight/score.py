"""Score texts with a masked language model: pseudo-log-likelihoods, per token and per text."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskft.annotate.spans import Span
from maskft.insight.copies import BATCH_TOKENS, Copy, target_logprobs
from maskft.insight.encode import METHODS, Text, TextEncoder, check_masked_model
from maskft.insight.html import scores_html
from maskft.insight.logits import evaluating, language_model

AT_ONCE = 64  # texts whose copies share batches


@dataclass(frozen=True)
class TextScore:
    """Hold the score of a text.

    Attributes:
        text: as it was given.
        tokens: its tokens as the vocabulary writes them.
        logprobs: the log-probability of each token, nats; None for special tokens that the text
            itself contains, which are not scored.
        units: the number of each token's unit, -1 where nothing is scored.
    """

    text: str
    tokens: list[str] = field(repr=False)
    logprobs: list[float | None] = field(repr=False)
    units: list[int] = field(repr=False)

    @property
    def logprob(self) -> float:
        """Sum the log-probabilities: the pseudo-log-likelihood, nats."""
        return math.fsum(value for value in self.logprobs if value is not None)

    @property
    def count(self) -> int:
        """Count the scored tokens."""
        return sum(value is not None for value in self.logprobs)

    @property
    def perplexity(self) -> float:
        """Return exp(-logprob / count), infinite where that overflows."""
        return perplexity(self.logprob, self.count)


@dataclass(frozen=True)
class Scores:
    """Hold the scores of texts, in their order.

    Attributes:
        texts: a score for each.
        method: how they were scored.
    """

    texts: tuple[TextScore, ...] = field(repr=False)
    method: str

    def __getitem__(self, i: Any) -> Any:
        return self.texts[i]

    def __iter__(self) -> Iterator[TextScore]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def logprob(self) -> float:
        """Sum the pseudo-log-likelihoods of the texts, nats."""
        return math.fsum(text.logprob for text in self.texts)

    @property
    def count(self) -> int:
        """Count the scored tokens of the texts."""
        return sum(text.count for text in self.texts)

    @property
    def perplexity(self) -> float:
        """Return the pseudo-perplexity of the texts together: exp(-logprob / count)."""
        return perplexity(self.logprob, self.count)

    def _repr_html_(self) -> str:
        return scores_html(self)


def perplexity(logprob: float, count: int) -> float:
    """Return exp(-logprob / count), infinite where that overflows, NaN of nothing."""
    if not count:
        return math.nan
    mean = -logprob / count
    return math.exp(mean) if mean < 700 else math.inf


class Scorer:
    """Score texts with one model, some at a time.

    Args, Raises: as for ``score``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        method: str = "original",
        max_length: int | None = None,
        stride: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}")
        check_batch_tokens(batch_tokens)
        inner = language_model(model)
        check_masked_model(inner, tokenizer)
        self.model, self.method, self.batch_tokens = model, method, batch_tokens
        self.encoder = TextEncoder(inner, tokenizer, max_length, stride)

    def __call__(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[Span]] | None = None,
        name: str = "texts",
        first: int = 0,
    ) -> list[TextScore]:
        """Score texts; ``name`` and ``first`` (the number of the first) are for errors."""
        encoded = self.encoder(texts, name, first)
        copies: list[Copy] = []
        targets: list[np.ndarray] = []
        units, places, bounds = [], [], []
        for i, text in enumerate(encoded):
            units.append(self.encoder.units(text, self.method, spans[i] if spans else None))
            made, order = self.encoder.copies(text, units[-1], self.method)
            copies += made
            targets += [copy.ids[copy.predicted] for copy in made]
            places.append(order)
            bounds.append(len(copies))
        with evaluating(self.model):
            found = target_logprobs(
                self.model, copies, targets, mask_id=self.encoder.mask_id,
                pad_id=self.encoder.pad_id, batch_tokens=self.batch_tokens,
            )  # fmt: skip
        begins = [0, *bounds[:-1]]
        return [
            self._score(text, of_text, order, np.concatenate(found[begin:end]))
            for text, of_text, order, begin, end in zip(
                encoded, units, places, begins, bounds, strict=True
            )
        ]

    def _score(
        self, text: Text, units: np.ndarray, places: np.ndarray, logprobs: np.ndarray
    ) -> TextScore:
        by_token: list[float | None] = [None] * len(text.ids)
        for place, value in zip(places.tolist(), logprobs.tolist(), strict=True):
            by_token[place] = value
        return TextScore(text.text, self.encoder.tokens(text.ids), by_token, units.tolist())


def score(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    method: str = "original",
    entities: Sequence[Sequence[Span]] | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score texts by pseudo-log-likelihood: each unit of a text is hidden in turn and predicted.

    The score of a text is the sum of log p(token | the text with the token's unit hidden). A text
    of n units costs n rows; the head runs on the hidden tokens only. The model runs where it is and
    in its own dtype; probabilities are taken in float32.

    Texts longer than the model takes are read through windows: of the windows that begin every
    ``stride`` tokens, a unit is predicted in the one whose middle is nearest to it.

    Args:
        model: a masked language model.
        texts: strings. An unknown token counts as a token like any other.
        method: what is hidden. "original": a token (Salazar et al. 2020). "within_word_l2r": a
            token and the later tokens of its word (Kauf and Ivanova 2023), so that a word of
            several pieces does not give itself away. "whole_word": a word, all of whose tokens are
            predicted at once. "entity": an entity, and outside of entities a word.
        entities: with method="entity": for each text its spans, (begin, end) in characters.
        max_length: tokens in a window, special tokens included. None: what the model takes.
        stride: tokens from a window to the next. None: half a window.
        batch_tokens: tokens in a batch, padding included, at most.
        progress: called with (texts done, texts) after every 64 texts.

    Raises:
        TypeError: a model that fills no masks, saying what to use; a text that is no string.
        ValueError: an empty text; options that do not fit; a vocabulary without word marks where
            words are needed; a unit longer than a window.

    Examples:
        >>> from maskft import score
        >>> scores = score(model, tokenizer, ["the quick brown fox", "fox brown quick the"])
        >>> len(scores), scores[0].count, scores[0].tokens
        (2, 4, ['the', 'quick', 'brown', 'fox'])
        >>> scores[0].logprob < 0, scores.perplexity > 1
        (True, True)
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of texts, got the string {texts[:30]!r}")
    texts = list(texts)
    if (entities is not None) != (method == "entity"):
        raise ValueError(
            'entities= gives the spans of each text and goes with method="entity", '
            f"got method={method!r}"
        )
    if entities is not None and len(entities) != len(texts):
        raise ValueError(f"entities is for {len(entities)} texts, there are {len(texts)}")
    scorer = Scorer(
        model, tokenizer, method=method, max_length=max_length, stride=stride,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    found: list[TextScore] = []
    for begin in range(0, len(texts), AT_ONCE):
        end = begin + AT_ONCE
        found += scorer(texts[begin:end], entities and entities[begin:end], first=begin)
        if progress is not None:
            progress(len(found), len(texts))
    return Scores(tuple(found), method)


def check_batch_tokens(batch_tokens: int) -> None:
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int):
        raise TypeError(f"batch_tokens must be an int, got {type(batch_tokens).__name__}")
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
