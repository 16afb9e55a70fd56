"""Predict the tokens of fixed masks: what a model got right, by class of token, how sure it was."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maskft.collate.collator import DataCollatorForLanguageModeling
from maskft.insight.copies import BATCH_TOKENS
from maskft.insight.logits import device_of, evaluating, predicted_logits
from maskft.strategy import ENTITY_COLUMN, WEIGHT_COLUMN
from maskft.strategy.word_marks import WordMarks
from maskkernels import IGNORE_INDEX

_NOT_INPUTS = ("label_positions", "label_weights", "num_items")
_BANDS = (100, 1000, 10_000)  # ranks of tokens by frequency
_RANKS = ("rank 1 to 100", "rank 101 to 1,000", "rank 1,001 to 10,000", "rank above 10,000")
_PIECES = ("whole word", "first piece", "later piece")
_QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")
_LABELS = (*_RANKS, *_PIECES, *_QUARTERS)  # in this order


@dataclass(frozen=True)
class Predictions:
    """Hold what a model predicted under fixed masks, an entry for each predicted token.

    Attributes:
        rows: how many rows there were.
        row, position: int64 [N], where the token is; positions count from a row's first real token.
        token: int64 [N], what was to be predicted.
        logprob: float64 [N], its log-probability, nats.
        rank: int64 [N], how many tokens were more probable.
        confidence: float64 [N], the probability of the most probable token.
    """

    rows: int
    row: np.ndarray
    position: np.ndarray
    token: np.ndarray
    logprob: np.ndarray
    rank: np.ndarray
    confidence: np.ndarray

    @property
    def loss(self) -> float:
        """Return the mean cross-entropy, nats; NaN of nothing."""
        return float(-self.logprob.mean()) if len(self.logprob) else float("nan")

    def top_k(self, k: int) -> float:
        """Return the share of tokens among the ``k`` most probable ones; NaN of nothing."""
        return float((self.rank < k).mean()) if len(self.rank) else float("nan")

    def calibration_error(self, bins: int = 15) -> float:
        """Return the expected calibration error (Guo et al. 2017).

        Tokens fall into ``bins`` of equal width by confidence; the error is the sum over bins of
        |accuracy - mean confidence|, each times the bin's share of the tokens.
        """
        return sum(share * abs(right - sure) for share, right, sure in self.reliability(bins))

    def reliability(self, bins: int = 15) -> list[tuple[float, float, float]]:
        """List (share of the tokens, accuracy, mean confidence) of each bin that has tokens."""
        place = np.minimum((self.confidence * bins).astype(np.int64), bins - 1)
        right = self.rank == 0
        return [
            (float(here.mean()), float(right[here].mean()), float(self.confidence[here].mean()))
            for here in (place == n for n in range(bins))
            if here.any()
        ]


def predict_masked(
    model: Any,
    rows: Sequence[Any],
    collator: DataCollatorForLanguageModeling,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> Predictions:
    """Predict the tokens that the collator's evaluation masks select, the same at every call.

    Rows of similar length share batches of at most ``batch_tokens`` tokens, padding included. The
    head runs on the predicted tokens only.

    Args:
        model: a masked language model.
        rows: tokenized rows, with the columns that the collator's strategy reads.
    """
    fixed, device = collator.for_evaluation(), device_of(model)
    parts: list[tuple[np.ndarray, ...]] = []
    with evaluating(model):
        for numbers in _batches([len(row["input_ids"]) for row in rows], batch_tokens):
            batch = dict(fixed([dict(rows[i]) for i in numbers]))
            labels, real = batch.pop("labels"), batch["attention_mask"].bool()
            for name in _NOT_INPUTS:
                batch.pop(name, None)
            predicted = labels != IGNORE_INDEX
            if not predicted.any():
                continue
            inputs = {name: value.to(device) for name, value in batch.items()}
            logits = predicted_logits(model, inputs, predicted.to(device))
            targets = labels[predicted].to(device)
            own = logits.gather(1, targets[:, None])
            total = logits.logsumexp(-1)
            row, _ = predicted.nonzero(as_tuple=True)
            found = (
                own.squeeze(1) - total,
                (logits > own).sum(-1),
                (logits.amax(-1) - total).exp(),
            )
            parts.append((
                np.array(numbers)[row.numpy()],
                (real.cumsum(-1) - 1)[predicted].numpy(),
                targets.cpu().numpy(),
                *(value.cpu().double().numpy() for value in found),
            ))  # fmt: skip
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.zeros(0)] * 6
    order = np.lexsort((columns[1], columns[0]))
    row, position, token, logprob, rank, confidence = (column[order] for column in columns)
    whole = (np.asarray(column, np.int64) for column in (row, position, token, rank))
    row, position, token, rank = whole
    return Predictions(len(rows), row, position, token, logprob, rank, confidence)


def token_classes(
    tokenizer: Any, rows: Sequence[Any], predictions: Predictions
) -> dict[str, np.ndarray]:
    """Sort the predicted tokens into classes: {kind: a label for each predicted token}.

    Kinds: "frequency", the rank of the token among the tokens of ``rows``, most frequent first;
    "position", the quarter of its row; where the vocabulary marks words "word", whether the token
    is a whole word or which piece of one; where the rows have such columns "entity" and "keyword".
    """
    row, position = predictions.row, predictions.position
    found = {"frequency": _frequency(rows, predictions.token)}
    if (marks := WordMarks(tokenizer)).known:
        found["word"] = _pieces(marks, tokenizer, rows, row, position)
    lengths = np.array([len(one["input_ids"]) for one in rows], np.int64)
    quarter = position * 4 // lengths[row] if len(row) else row
    found["position"] = np.array(_QUARTERS)[quarter]
    for kind, column, labels in (
        ("entity", ENTITY_COLUMN, ("elsewhere", "in an entity")),
        ("keyword", WEIGHT_COLUMN, ("weight 0", "weight above 0")),
    ):
        if len(rows) and all(column in one for one in rows):
            values = [rows[r][column][p] for r, p in zip(row.tolist(), position.tolist(),
                                                         strict=True)]  # fmt: skip
            inside = np.array(values) >= 0 if kind == "entity" else np.array(values) > 0
            found[kind] = np.array(labels)[inside.astype(np.int64)]
    return found


def by_class(classes: dict[str, np.ndarray]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (kind, label, bool [N]) for each class that has tokens."""
    for kind, labels in classes.items():
        found = set(labels.tolist())
        for label in (*(one for one in _LABELS if one in found), *sorted(found - {*_LABELS})):
            yield kind, label, labels == label


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of rows that share a batch, the longest rows first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    begin = 0
    while begin < len(order):
        end = begin + max(batch_tokens // max(lengths[order[begin]], 1), 1)
        yield order[begin:end]
        begin = end


def _frequency(rows: Sequence[Any], tokens: np.ndarray) -> np.ndarray:
    ids = [np.asarray(row["input_ids"], np.int64) for row in rows]
    counts = np.bincount(np.concatenate(ids)) if ids else np.zeros(0, np.int64)
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.array(_RANKS)[np.searchsorted(np.array(_BANDS), ranks[tokens], side="right")]


def _pieces(
    marks: WordMarks, tokenizer: Any, rows: Sequence[Any], row: np.ndarray, position: np.ndarray
) -> np.ndarray:
    """Say of each predicted token whether it is a whole word or which piece of one."""
    special = list(tokenizer.all_special_ids)
    found = np.zeros(len(row), np.int64)
    for number in np.unique(row).tolist():
        ids = np.asarray(rows[number]["input_ids"], np.int64)
        hidden = torch.from_numpy(np.isin(ids, special))[None]
        units = marks.units(torch.from_numpy(ids)[None], special_tokens_mask=hidden)[0].numpy()
        later = np.append(False, (units[1:] == units[:-1]) & (units[1:] >= 0))
        goes_on = np.append(later[1:], False)
        kinds = np.where(later, 2, np.where(goes_on, 1, 0))
        here = row == number
        found[here] = kinds[position[here]]
    return np.array(_PIECES)[found]
