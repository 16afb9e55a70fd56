"""Templates: texts to rows with one mask, and the words in its place to labels."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

import torch
from torch import Tensor

from maskft.insight.logits import device_of, evaluating, predicted_logits
from maskft.prompt.words import word_ids
from maskkernels import IGNORE_INDEX

MASK = "[MASK]"  # in patterns, whatever the tokenizer calls it
_NO_LIMIT = 1 << 20  # of tokenizers that know none


@dataclass(frozen=True)
class Template:
    """Classify texts by the word that a masked language model puts in a template.

    A text becomes a row with one mask, and each label has a word: the label whose word is most
    probable at the mask is the prediction. ``rows`` with labels are training data for any masked
    language model (a label at the mask, -100 elsewhere), with Transformers'
    ``DataCollatorForTokenClassification`` and, for one predicted token per text, ``fuse_loss``.

    Args:
        pattern: such as "{text} It was [MASK].", with [MASK] once, whatever the tokenizer's own
            mask token is. Texts are strings for a pattern with one field, else mappings with an
            entry for each field, as for "{premise}? [MASK], {hypothesis}".
        words: from words to labels, any hashable values. Each word must be one token where the mask
            is. Several words may have one label: ``rows`` then use the first.
        tokenizer: a fast tokenizer with a mask token.
        max_length: tokens in a row, at most. A longer row loses tokens at the end of its longest
            field (at the beginning, if the tokenizer's ``truncation_side`` is left), never the
            mask nor the template's own words. None: the tokenizer's ``model_max_length``.

    Raises:
        ValueError, TypeError: a pattern without [MASK] or with two, a word that is not one token
            (naming words that are), a tokenizer that does not fit, a text that is none.

    Source: Schick and Schuetze, "Exploiting Cloze Questions for Few-Shot Text Classification and
        Natural Language Inference" (2021), PET; Gao et al., "Making Pre-trained Language Models
        Better Few-shot Learners" (2021), LM-BFF.

    Examples:
        >>> from maskft.prompt import Template
        >>> words = {"fox": "animal", "word": "thing"}
        >>> template = Template("{text} and a [MASK]", words, tokenizer)
        >>> row = template.rows(["the lazy dog"], ["animal"])[0]
        >>> [tokenizer.decode(i) for i, l in zip(row["input_ids"], row["labels"]) if l != -100]
        ['[MASK]']
        >>> len(template.predict_labels(model, ["the lazy dog", "a long word"]))
        2
    """

    pattern: str
    words: Mapping[str, Hashable]
    tokenizer: Any
    max_length: int | None = None
    ids: dict[str, int] = field(init=False, repr=False, compare=False)
    _parts: tuple[tuple[str, str | None], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_tokenizer(self.tokenizer)
        object.__setattr__(self, "_parts", _parts_of(self.pattern))
        if not isinstance(self.words, Mapping) or len(self.labels) < 2:
            raise ValueError(
                "words must map words to labels, of which there are two or more, got "
                f"{self.words!r}"
            )
        for word in self.words:
            if not isinstance(word, str) or not word.strip():
                raise TypeError(f"words must be text, got {word!r}")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be positive, got {self.max_length}")

        def around(word: str) -> tuple[str, int]:
            text, begin, _ = self._fill(dict.fromkeys(self.fields, ""), word)
            return text, begin

        object.__setattr__(self, "ids", word_ids(self.tokenizer, self.words, around))

    @property
    def labels(self) -> list[Hashable]:
        """The labels, in the order of their first words."""
        return list(dict.fromkeys(self.words.values()))

    @property
    def fields(self) -> list[str]:
        """The names of the pattern's fields."""
        return list(dict.fromkeys(name for _, name in self._parts if name is not None))

    def rows(
        self,
        texts: Sequence[Any],
        labels: Sequence[Hashable] | None = None,
        *,
        mask_only: str | None = None,
    ) -> list[dict[str, list[int]]]:
        """Encode texts as rows: input_ids, attention_mask, token_type_ids where the model has them.

        Args:
            texts: strings, or mappings from fields to strings.
            labels: adds "labels": the id of the label's word at the mask, -100 elsewhere.
            mask_only: adds a column of this name, 1 at the tokens of the texts, 0 at those of the
                template: for ``MaskInputs(mask_only=...)``.

        Raises:
            ValueError, TypeError: a text or label that does not fit, or no room for the template.
        """
        if labels is not None:
            labels = list(labels)
            if len(labels) != len(texts):
                raise ValueError(f"there are {len(texts)} texts and {len(labels)} labels")
            self._check_labels(labels)
        first = {label: self.ids[word] for word, label in reversed([*self.words.items()])}
        made = []
        for i, (row, place, own) in enumerate(self._encode(texts)):
            if labels is not None:
                row["labels"] = [IGNORE_INDEX] * len(own)
                row["labels"][place] = first[labels[i]]
            if mask_only is not None:
                row[mask_only] = own
            made.append(row)
        return made

    def log_probabilities(
        self,
        model: Any,
        texts: Sequence[Any],
        *,
        prior: Tensor | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Return the log-probability of each label, float32 [texts, labels], on the CPU.

        log of the softmax over the words' logits at the mask, summed over the words of a label.
        The head is computed at the masks only.

        Args:
            model: a masked language model, fused or not; left in the mode it was in.
            prior: from ``calibrate``: probabilities are divided by it, and normalised again.
            batch_size: texts at a time.
        """
        rows = list(self._encode(texts))
        self._check_fits(model, rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]["input_ids"]))
        scores = torch.empty(len(rows), len(self.words))
        device, ids = device_of(model), torch.tensor([self.ids[word] for word in self.words])
        with evaluating(model):
            for begin in range(0, len(order), batch_size):
                batch = order[begin : begin + batch_size]
                inputs = self.tokenizer.pad(
                    [rows[i][0] for i in batch], padding_side="right", return_tensors="pt"
                )
                width = inputs["input_ids"].shape[1]
                places = [b * width + rows[i][1] for b, i in enumerate(batch)]
                logits = predicted_logits(
                    model, dict(inputs.to(device)), torch.tensor(places, device=device)
                )
                scores[batch] = logits[:, ids.to(device)].log_softmax(-1).cpu()
        groups = [
            [w for w, own in enumerate(self.words.values()) if own == label]
            for label in self.labels
        ]
        found = torch.stack([scores[:, group].logsumexp(-1) for group in groups], dim=1)
        return found if prior is None else (found - prior.log()).log_softmax(-1)

    def calibrate(
        self, model: Any, content_free: Sequence[Any] = ("N/A", MASK, ""), *, batch_size: int = 32
    ) -> Tensor:
        """Return the labels' mean probabilities for texts that say nothing: a ``prior``, [labels].

        Dividing by it takes away the preference that model and template have before any text is
        read (contextual calibration, Zhao et al., "Calibrate Before Use", 2021).

        Args:
            content_free: texts as for ``rows``; a string fills every field. "[MASK]" becomes
                the tokenizer's mask token.
        """
        fields = self.fields
        texts = [
            dict.fromkeys(fields, text.replace(MASK, self.tokenizer.mask_token))
            if isinstance(text, str)
            else text
            for text in content_free
        ]
        return self.log_probabilities(model, texts, batch_size=batch_size).exp().mean(0)

    def predict_labels(
        self,
        model: Any,
        texts: Sequence[Any],
        *,
        prior: Tensor | None = None,
        batch_size: int = 32,
    ) -> list[Hashable]:
        """Return the most probable label of each text; arguments as for ``log_probabilities``."""
        labels = self.labels
        scores = self.log_probabilities(model, texts, prior=prior, batch_size=batch_size)
        return [labels[i] for i in scores.argmax(1).tolist()]

    def _encode(
        self, texts: Sequence[Any]
    ) -> Iterator[tuple[dict[str, list[int]], int, list[int]]]:
        """Yield (row, place of its mask, 1 for tokens of the text) of each text."""
        if isinstance(texts, (str, Mapping)):
            raise TypeError(f"texts must be a sequence of texts, got {type(texts).__name__}")
        filled = [
            self._fill(self._fields_of(text, i), self.tokenizer.mask_token)
            for i, text in enumerate(texts)
        ]
        if not filled:
            return
        encoded = self.tokenizer(
            [text for text, _, _ in filled],
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        limit = self._limit()
        for i, (_, begin, spans) in enumerate(filled):
            ids, offsets = encoded["input_ids"][i], encoded["offset_mapping"][i]
            fields = _fields_of_tokens(offsets, encoded.sequence_ids(i), spans)
            kept = _shortened(fields, limit, self.tokenizer.truncation_side)
            place = _place_of(begin, ids, offsets, self.tokenizer.mask_token_id)
            row = {name: [encoded[name][i][t] for t in kept] for name in names}
            yield row, kept.index(place), [int(fields[t] >= 0) for t in kept]

    def _fields_of(self, text: Any, i: int) -> Mapping[str, str]:
        """Return the fields of text ``i``, checked."""
        names = self.fields
        if isinstance(text, str):
            if len(names) != 1:
                raise ValueError(
                    f"text {i} is a string, and the pattern has the fields {names}: give a mapping"
                )
            return {names[0]: text}
        if not isinstance(text, Mapping):
            raise TypeError(f"text {i} must be a string or a mapping, got {type(text).__name__}")
        for name in names:
            if name not in text:
                raise ValueError(f"text {i} has no {name!r}; it has {sorted(map(str, text))}")
            if not isinstance(text[name], str):
                raise TypeError(
                    f"{name!r} of text {i} must be a string, got {type(text[name]).__name__}"
                )
        return text

    def _fill(self, fields: Mapping[str, str], word: str) -> tuple[str, int, list[tuple[int, int]]]:
        """Return (the text, where ``word`` begins in it, where the fields begin and end)."""
        text, begin, spans = "", 0, []
        for literal, name in self._parts:
            before, mask, after = literal.partition(MASK)
            text += before
            if mask:
                begin = len(text)
                text += word + after
            if name is not None:
                spans.append((len(text), len(text) + len(fields[name])))
                text += fields[name]
        return text, begin, spans

    def _limit(self) -> int:
        return self.max_length or min(int(self.tokenizer.model_max_length), _NO_LIMIT)

    def _check_labels(self, labels: Sequence[Hashable]) -> None:
        known = self.labels
        for i, label in enumerate(labels):
            if label not in known:
                raise ValueError(
                    f"label {i} is {label!r}, for which there is no word; the labels are {known}"
                )

    def _check_fits(
        self, model: Any, rows: list[tuple[dict[str, list[int]], int, list[int]]]
    ) -> None:
        positions = getattr(model.config, "max_position_embeddings", None)
        longest = max((len(row["input_ids"]) for row, _, _ in rows), default=0)
        if isinstance(positions, int) and 0 < positions < longest:
            raise ValueError(
                f"a row has {longest} tokens and the model takes {positions}: give the template "
                "max_length="
            )


def _parts_of(pattern: Any) -> tuple[tuple[str, str | None], ...]:
    """Return the pattern as (literal, name of the field after it) pairs, checked."""
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be text, got {type(pattern).__name__}")
    try:
        parsed = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"pattern {pattern!r}: {error}; a brace in the text is {{{{") from None
    parts = tuple((literal, name) for literal, name, _, _ in parsed)
    names = [name for _, name in parts if name is not None]
    if not names or not all(name.isidentifier() for name in names):
        raise ValueError(f"pattern must have named fields, such as {{text}}, got {pattern!r}")
    count = sum(literal.count(MASK) for literal, _ in parts)
    if count != 1:
        raise ValueError(
            f"pattern must have {MASK} once, got {pattern!r}, which has it {count} times"
        )
    return parts


def _check_tokenizer(tokenizer: Any) -> None:
    if getattr(tokenizer, "mask_token_id", None) is None:
        raise ValueError(
            f"the tokenizer must have a mask token, and {type(tokenizer).__name__} has none: "
            "choose a masked language model (BERT, RoBERTa, ModernBERT...)"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not give the offsets of its tokens, by which the "
            "mask is found: use a model with a fast tokenizer"
        )


def _place_of(
    begin: int, ids: Sequence[int], offsets: Sequence[tuple[int, int]], mask_token_id: int
) -> int:
    """Return the place of the mask that begins at character ``begin``: a text may hold others."""
    for t, (first, last) in enumerate(offsets):
        if ids[t] == mask_token_id and first <= begin < last:
            return t
    raise ValueError("the tokenizer does not keep its mask token in one piece in this template")


def _fields_of_tokens(
    offsets: Sequence[tuple[int, int]], sides: Sequence[int | None], spans: list[tuple[int, int]]
) -> list[int]:
    """Return the number of the field each token is within, -1 for none."""
    found = []
    for (first, last), side in zip(offsets, sides, strict=True):
        inside = (n for n, (b, e) in enumerate(spans) if b <= first < e and last <= e)
        found.append(-1 if side is None else next(inside, -1))
    return found


def _shortened(fields: list[int], limit: int, side: str) -> list[int]:
    """Return which tokens stay in a row of at most ``limit``: the longest field is cut first."""
    over = len(fields) - limit
    if over <= 0:
        return list(range(len(fields)))
    places: dict[int, list[int]] = {}
    for t, n in enumerate(fields):
        if n >= 0:
            places.setdefault(n, []).append(t)
    own = len(fields) - sum(map(len, places.values()))
    if own > limit:
        raise ValueError(
            f"the template alone has {own} tokens, and max_length is {limit}: there is no room for "
            "a text"
        )
    for _ in range(over):
        longest = max(places.values(), key=len)
        longest.pop(0 if side == "left" else -1)
    gone = set(range(len(fields))) - {t for kept in places.values() for t in kept}
    return [t for t, n in enumerate(fields) if n < 0 or t not in gone]
