"""Explain a prediction by occlusion: which parts of the text does it lean on?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from maskft.annotate.spans import Span
from maskft.insight.copies import BATCH_TOKENS, Copy, batches
from maskft.insight.encode import Text, TextEncoder, unit_places
from maskft.insight.html import explanation_html
from maskft.insight.logits import device_of, evaluating, language_model, predicted_logits
from maskft.insight.score import check_batch_tokens

UNITS = {"token": "original", "word": "whole_word", "entity": "entity"}
HIDE = ("mask", "drop")


@dataclass(frozen=True)
class Part:
    """Hold a unit of a text and what it contributes to a prediction.

    Attributes:
        text: the unit as the text writes it.
        begin, end: its first token in the text, and the one after its last.
        contribution: value of the whole text less the value without the unit. Above 0: the unit
            speaks for the prediction.
    """

    text: str
    begin: int
    end: int
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """Hold the explanation of a prediction, and the check of its faithfulness.

    The curves give the probability of the prediction (for a regression its value) as units are
    hidden, most contributing first (deletion), or shown in that order in an otherwise hidden text
    (insertion). ``random`` is the deletion curve of random orders, their mean. A faithful
    explanation has a deletion area below the random one and an insertion area above it.

    Attributes:
        text, target: what was explained: the text and the token or label.
        value: log-probability of the target (for a regression its value).
        probability: of the target.
        parts: the units in the order of the text.
        shares: how much of the units is hidden (deletion) or shown (insertion), from 0 to 1.
        deletion, insertion, random: curves over ``shares``.
    """

    text: str
    target: str
    value: float
    probability: float
    parts: tuple[Part, ...] = field(repr=False)
    shares: tuple[float, ...] = field(repr=False)
    deletion: tuple[float, ...] = field(repr=False)
    insertion: tuple[float, ...] = field(repr=False)
    random: tuple[float, ...] = field(repr=False)

    @property
    def positive(self) -> list[Part]:
        """List the units that speak for the prediction, most first."""
        found = [part for part in self.parts if part.contribution > 0]
        return sorted(found, key=lambda part: -part.contribution)

    @property
    def negative(self) -> list[Part]:
        """List the units that speak against the prediction, most first."""
        found = [part for part in self.parts if part.contribution < 0]
        return sorted(found, key=lambda part: part.contribution)

    @property
    def deletion_area(self) -> float:
        """Return the area under ``deletion``."""
        return area(self.shares, self.deletion)

    @property
    def insertion_area(self) -> float:
        """Return the area under ``insertion``."""
        return area(self.shares, self.insertion)

    @property
    def random_area(self) -> float:
        """Return the area under the curve of random orders, for deletion and insertion alike."""
        return area(self.shares, self.random)

    def __str__(self) -> str:
        lines = [f"{self.target}: probability {self.probability:.4f}"]
        lines += [f"{part.contribution:+.4f}  {part.text}" for part in self.positive[:10]]
        lines += [f"{part.contribution:+.4f}  {part.text}" for part in self.negative[:10]]
        lines.append(
            f"area: deletion {self.deletion_area:.4f}, random {self.random_area:.4f}, "
            f"insertion {self.insertion_area:.4f}"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return explanation_html(self)


def explain(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    target: str | int | None = None,
    unit: str = "word",
    block: int = 1,
    entities: Sequence[Span] | None = None,
    hide: str = "mask",
    answer: int | None = None,
    steps: int = 10,
    orders: int = 10,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> Explanation:
    """Explain the answer at a mask, or the label of a classifier, by leaving units out in turn.

    The contribution of a unit is log p(target | text) - log p(target | text without the unit). For
    a label of a multi-label classifier p is its sigmoid; for a regression the value itself takes
    the place of log p. The check, deletion and insertion curves against random orders, is part of
    every explanation.

    Args:
        model: a masked language model and a text with a mask token, or a sequence classifier.
        text: of a masked language model it may be longer than the model takes: the window with the
            mask in its middle is explained.
        target: a token or a label. None: the most probable.
        unit: "word", "token" or "entity" (and outside of entities a word).
        block: so many units in a row are left out together, for long texts.
        entities: with unit="entity": spans of characters, (begin, end).
        hide: "mask" replaces the tokens of a unit by the mask token, "drop" removes them.
        answer: which mask of several, from 0.
        steps: points of the curves. orders: random orders. seed: of those.
        batch_tokens: tokens in a batch, padding included, at most.

    Raises:
        ValueError: a text without a mask, or with several and no ``answer``; a classifier's text
            that is longer than the model takes; a target that is no single token or no label;
            options that do not fit.

    Examples:
        >>> from maskft import explain
        >>> found = explain(model, tokenizer, "the quick brown [MASK] jumps", target="fox")
        >>> found.target, [part.text for part in found.parts]
        ('fox', ['the', 'quick', 'brown', 'jumps'])
        >>> len(found.deletion) == len(found.random) == len(found.shares)
        True
    """
    _check(text, unit, hide, block, steps, orders, entities)
    check_batch_tokens(batch_tokens)
    if hide == "mask" and tokenizer.mask_token_id is None:
        raise ValueError(
            f'{type(tokenizer).__name__} has no mask token: hide="drop" removes tokens instead'
        )
    encoder = TextEncoder(language_model(model), tokenizer)
    asked = _Question(model, encoder, encoder([text], "text")[0], hide, batch_tokens)
    with evaluating(model):
        asked.find(answer, target)
        numbers = encoder.units(asked.text, UNITS[unit], entities)
        numbers = np.where(asked.inside, numbers, -1)
        places = unit_places(numbers) if (numbers >= 0).any() else []
        places = [np.concatenate(places[i : i + block]) for i in range(0, len(places), block)]
        if not places:
            raise ValueError("the text has nothing to leave out but the mask")
        values = asked.values([np.zeros(0, np.int64), *places])
        contributions = values[0] - values[1:]
        counts = sorted({round(n * len(places) / steps) for n in range(steps + 1)})
        ranked = np.argsort(-contributions, kind="stable")
        generator = np.random.default_rng(seed)
        shuffled = [generator.permutation(len(places)) for _ in range(orders)]
        hidden = [
            [order[:n] for n in counts] for order in (ranked, *shuffled)
        ]  # fmt: skip
        hidden.append([ranked[n:] for n in counts])
        sets = [frozenset(some) for curve in hidden for some in curve]
        distinct = list(dict.fromkeys(sets))  # the ends of all curves are the same
        nothing = np.zeros(0, np.int64)
        found = asked.values(
            [np.concatenate([nothing, *(places[i] for i in sorted(some))]) for some in distinct]
        )
        by_set = dict(zip(distinct, asked.shown(found).tolist(), strict=True))
        curves = np.array([by_set[some] for some in sets]).reshape(len(hidden), len(counts))
    parts = [
        Part(
            _text_of(encoder, asked.text, some), int(some.min()), int(some.max()) + 1, float(value)
        )
        for some, value in zip(places, contributions, strict=True)
    ]
    whole = float(values[0])
    return Explanation(
        text, asked.name, whole, float(asked.shown(values[:1])[0]), tuple(parts),
        tuple(n / len(places) for n in counts), tuple(curves[0].tolist()),
        tuple(curves[-1].tolist()), tuple(curves[1:-1].mean(0).tolist()),
    )  # fmt: skip


def area(shares: Sequence[float], values: Sequence[float]) -> float:
    """Return the area under a curve, by trapezoids."""
    x, y = np.array(shares), np.array(values)
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


class _Question:
    """Hold what is asked of a model about a text, and answer it for any hidden tokens.

    Attributes:
        inside: bool [n], the tokens of the window that is explained.
        name: the token or label.
    """

    def __init__(
        self, model: Any, encoder: TextEncoder, text: Text, hide: str, batch_tokens: int
    ) -> None:
        self.model, self.encoder, self.text, self.hide = model, encoder, text, hide
        self.batch_tokens = batch_tokens
        self.name, self.target = "", 0
        self.place: int | None = None  # of the answer in the text; None for a classifier
        self.begin = 0
        self.inside = np.ones(len(text.ids), bool)
        self._kind = "softmax"

    def find(self, answer: int | None, target: str | int | None) -> None:
        """Find the place of the answer and the target."""
        inner = language_model(self.model)
        masks = np.flatnonzero(self.text.ids == self.encoder.mask_id)
        if inner.get_output_embeddings() is not None or "MaskedLM" in type(inner).__name__:
            self._choose_mask(masks, answer)
        elif len(self.text.ids) > self.encoder.room:
            raise ValueError(
                f"the text has {len(self.text.ids)} tokens, {type(inner).__name__} takes "
                f"{self.encoder.room}: explain a part of it"
            )
        else:
            problem = getattr(inner.config, "problem_type", None)
            self._kind = "sigmoid" if problem == "multi_label_classification" else "softmax"
            if inner.config.num_labels == 1:
                self._kind = "value"
        logits = next(iter(self._logits([np.zeros(0, np.int64)])))[1][0]
        if self.place is None:
            self._choose_label(inner.config, logits, target)
        else:
            self._choose_token(logits, target)

    def values(self, hidden: Sequence[np.ndarray]) -> np.ndarray:
        """Return the value of the target with each of these sets of places hidden, float64."""
        found = np.zeros(len(hidden))
        for order, logits in self._logits(hidden):
            if self._kind == "softmax":
                logits = logits.log_softmax(-1)
            elif self._kind == "sigmoid":
                logits = functional.logsigmoid(logits)
            found[order] = logits[:, self.target].cpu().double().numpy()
        return found

    def shown(self, values: np.ndarray) -> np.ndarray:
        """Turn values into what curves show: probabilities."""
        return values if self._kind == "value" else np.exp(values)

    def _logits(self, hidden: Sequence[np.ndarray]) -> Any:
        copies = [self._copy(np.sort(some)) for some in hidden]
        device = device_of(self.model)
        mask_id = self.encoder.mask_id if self.hide == "mask" else self.encoder.pad_id
        for batch in batches(
            copies, mask_id=mask_id, pad_id=self.encoder.pad_id, batch_tokens=self.batch_tokens
        ):
            inputs = {name: value.to(device) for name, value in batch.inputs.items()}
            if self.place is None:
                logits: Tensor = self.model(**inputs).logits.float()
            else:
                logits = predicted_logits(self.model, inputs, batch.rows.to(device))
            yield batch.order, logits

    def _copy(self, hidden: np.ndarray) -> Copy:
        ids, types = self.encoder.window(self.text, self.begin)
        shift = self.encoder.prefix - self.begin
        hidden = hidden + shift
        predicted = np.array([] if self.place is None else [self.place + shift], np.int64)
        if self.hide == "mask":
            return Copy(ids, types, hidden, predicted)
        kept = np.ones(len(ids), bool)
        kept[hidden] = False
        moved = predicted - np.searchsorted(hidden, predicted)
        types = None if types is None else types[kept]
        return Copy(ids[kept], types, np.zeros(0, np.int64), moved)

    def _choose_mask(self, masks: np.ndarray, answer: int | None) -> None:
        mask = self.encoder.tokenizer.mask_token
        if not len(masks):
            raise ValueError(f"no {mask} in the text: that is where the model answers")
        if answer is None and len(masks) > 1:
            raise ValueError(f"{len(masks)} {mask} in the text: answer= says which, from 0")
        if answer is not None and not 0 <= answer < len(masks):
            raise ValueError(f"answer must be from 0 to {len(masks) - 1}, got {answer}")
        self.place = int(masks[answer or 0])
        room, length = self.encoder.room, len(self.text.ids)
        self.begin = min(max(self.place - room // 2, 0), max(length - room, 0))
        self.inside[: self.begin] = False
        self.inside[self.begin + room :] = False

    def _choose_token(self, logits: Tensor, target: str | int | None) -> None:
        tokenizer = self.encoder.tokenizer
        if target is None:
            target = int(logits.argmax())
        if isinstance(target, str):
            found = tokenizer.get_vocab().get(target)
            if found is None:
                for written in (target, f" {target}"):
                    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
                    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                        found = ids[0]
                        break
            if found is None:
                raise ValueError(
                    f"target {target!r} is not a single token of {type(tokenizer).__name__}"
                )
            target = int(found)
        if not 0 <= target < len(logits):
            raise ValueError(f"target must be from 0 to {len(logits) - 1}, got {target}")
        self.target = target
        self.name = tokenizer.decode([target]).strip()

    def _choose_label(self, config: Any, logits: Tensor, target: str | int | None) -> None:
        names = {int(i): str(name) for i, name in (config.id2label or {}).items()}
        if target is None:
            target = int(logits.argmax())
        if isinstance(target, str):
            known = {name: i for i, name in names.items()}
            if target not in known:
                raise ValueError(
                    f"target must be one of the labels {sorted(known)}, got {target!r}"
                )
            target = known[target]
        if not 0 <= target < len(logits):
            raise ValueError(f"target must be from 0 to {len(logits) - 1}, got {target}")
        self.target, self.name = target, names.get(target, str(target))


def _text_of(encoder: TextEncoder, text: Text, places: np.ndarray) -> str:
    if text.offsets is not None:
        begin, end = text.offsets[int(places.min())][0], text.offsets[int(places.max())][1]
        return text.text[begin:end].strip()
    return " ".join(encoder.tokens(text.ids[places]))


def _check(
    text: Any, unit: str, hide: str, block: int, steps: int, orders: int, entities: Any
) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {tuple(UNITS)}, got {unit!r}")
    if hide not in HIDE:
        raise ValueError(f"hide must be one of {HIDE}, got {hide!r}")
    if (entities is not None) != (unit == "entity"):
        raise ValueError(f'entities= goes with unit="entity", got unit={unit!r}')
    for name, value in (("block", block), ("steps", steps), ("orders", orders)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
