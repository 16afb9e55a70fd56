"""Choose which rows of a batch a call computes, and what they predict."""

import threading
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskft.collate.labels import IGNORE_INDEX


def shifted(labels: Tensor) -> Tensor:
    """Shift labels to the rows of a causal model that predict them: each the next row's label."""
    return F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)


def unshifted(labels: Tensor) -> Tensor:
    """Move labels so that ``shifted`` gives them back, all but the last of each row."""
    return F.pad(labels[..., :-1], (1, 0), value=IGNORE_INDEX)


def targets_of(labels: Tensor, shift_labels: Any, shift: bool) -> Any:
    """Return what each row of a call predicts: its own label, or if ``shift`` the next one.

    Raises:
        TypeError: ``shift_labels`` where rows predict their own labels.
    """
    if shift:
        return shifted(labels) if shift_labels is None else shift_labels
    if shift_labels is not None:
        raise TypeError("shift_labels do not go with rows that predict their own labels")
    return labels


def weighing(kwargs: dict[str, Any]) -> tuple[Any, Tensor | None]:
    """Take (what the loss is divided by, the weights of labels) out of the arguments of a call."""
    return _items_among(kwargs), _weights_among(kwargs)


def _items_among(kwargs: dict[str, Any]) -> Any:
    """Take what a call's loss is divided by: the batch's own ``num_items``, or the caller's count.

    Raises:
        ValueError: there are both, as in a Trainer that counts labels and is not attached.
    """
    own, counted = kwargs.pop("num_items", None), kwargs.pop("num_items_in_batch", None)
    if own is not None and counted is not None:
        raise ValueError(
            "the batch says what its loss is divided by (num_items), and so does the caller "
            "(num_items_in_batch, a count of labels): maskft.attach(trainer) makes a Trainer sum "
            "num_items over an update; in a loop of your own, pass the sum as num_items alone"
        )
    return counted if own is None else own


def _weights_among(kwargs: dict[str, Any]) -> Tensor | None:
    """Take ``label_weights`` out of the arguments of a call, checked against its labels.

    Raises:
        TypeError, ValueError: weights that do not fit.
    """
    weights = kwargs.pop("label_weights", None)
    if weights is None:
        return None
    labels = kwargs.get("labels")
    if not isinstance(labels, Tensor):
        raise ValueError(
            "label_weights go with labels, and this call has none (Trainer's "
            "label_smoothing_factor takes them away: use fuse_loss(model, label_smoothing=...))"
        )
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"label_weights must be a tensor of floats, got {got}")
    if weights.shape != labels.shape:
        raise ValueError(
            f"label_weights must have the shape of labels, {tuple(labels.shape)}, "
            f"got {tuple(weights.shape)}"
        )
    if weights.device != labels.device:
        raise ValueError(f"label_weights are on {weights.device}, labels on {labels.device}")
    if weights.requires_grad and torch.is_grad_enabled():
        raise ValueError("label_weights get no gradient: pass label_weights.detach()")
    return weights.detach()


def decoded_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of F.linear's result for ``hidden``."""
    kind = hidden.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def flat_positions(positions: Tensor, labels: Tensor, shift: bool) -> tuple[Tensor, bool]:
    """Return the places [R] that ``positions`` name in the flattened labels, and if it has looked.

    Where looking waits for nothing, places that do not name each label once are an error.

    Args:
        positions: places in each row of the batch, [B, k], or in the flattened batch, [R]. -1, and
            whatever is no place, names none.
        labels: [B, T].
        shift: whether nothing predicts the first label of a row: it may be left out.
    """
    if not isinstance(positions, Tensor) or positions.dtype not in (torch.int32, torch.int64):
        got = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise TypeError(f"label_positions must be a tensor of torch.int64, got {got}")
    by_row = positions.dim() == 2
    if positions.dim() != 1 and (not by_row or positions.shape[0] != labels.shape[0]):
        raise ValueError(
            "label_positions must be [B, k], places in each row of the batch, or [R], in the "
            f"flattened batch; got {tuple(positions.shape)} for labels {tuple(labels.shape)}"
        )
    room = labels.shape[-1] if by_row else labels.numel()
    inside = (positions >= 0) & (positions < room)
    flat = positions
    if by_row:
        flat = positions + room * torch.arange(len(labels), device=positions.device)[:, None]
    flat = torch.where(inside, flat, -1).reshape(-1)
    on_cpu = positions.device.type == labels.device.type == "cpu"
    if not on_cpu or torch.compiler.is_compiling():
        return flat, False
    if not (inside | (positions == -1)).all():
        where = "each row" if by_row else "the batch"
        raise ValueError(f"label_positions must be places in the {room} labels of {where}, or -1")
    flat = flat[flat >= 0]
    labelled = labels != IGNORE_INDEX
    if shift:
        labelled[..., 0] = False
    labelled = labelled.reshape(-1)
    named = torch.bincount(flat, minlength=labelled.numel())
    left_out = int((labelled & (named == 0)).sum())
    if left_out:
        cut = "; a loader that cuts batches cuts flat places too: give those of each row, [B, k]"
        raise ValueError(
            f"label_positions leave out {left_out} of the {int(labelled.sum())} labels of the "
            f"batch{'' if by_row else cut}"
        )
    if (named > 1).any():
        raise ValueError(f"label_positions name place {int((named > 1).int().argmax())} twice")
    return flat, True


class LabelledCall:
    """One call with labels.

    Attributes:
        targets: what each row of the batch predicts, [B, T].
        num_items: what the sum of losses is divided by, in all; None: the labels of this call.
        evaluation: whether the model is in evaluation mode and gradients are off.
        labels_given, shift_labels_given: what the call brought along.
        weights: of the targets, [B, T]; None: all 1.
        rows: int64 [R], which of the flattened rows are computed, -1 for none; None: all.
        in_decoder: whether the decoder computes the loss.
        early: whether the last layer may gather the rows, in place of the base model.
        gathered: whether a hook of the base model has gathered the rows.
        stand_in: what the decoder returned in place of logits.
        dtype: of the logits that it would have returned; None: it returned them.
        loss: the loss, once it is known.
    """

    def __init__(
        self,
        targets: Tensor,
        num_items: Any,
        labels: Tensor,
        shift_labels: Tensor | None,
        *,
        evaluation: bool,
    ) -> None:
        if isinstance(num_items, Tensor) and num_items.dim():
            num_items = num_items.sum()  # of each row
        self.targets = targets
        self.num_items = num_items
        self.evaluation = evaluation
        self.labels_given = labels
        self.shift_labels_given = shift_labels
        self.weights: Tensor | None = None
        self.rows: Tensor | None = None
        self.in_decoder = False
        self.early = False
        self.gathered = False
        self.stand_in: Tensor | None = None
        self.dtype: torch.dtype | None = None
        self.loss: Tensor | None = None
        self._poisoned: Tensor | None = None  # bool 0-d: the rows are not those of the labels

    def choose(self, positions: Tensor | None, shift: bool, capacity: int | None) -> None:
        """Choose the rows.

        Args:
            positions: int64 [B, k], the places of labels in their rows, or [R], in the flattened
                batch; -1 for none. None: labels are searched for.
            shift: whether the label at a place belongs to the row before it.
            capacity: how many rows to make room for where counting them would wait for a device or
                break a graph.
        """
        if positions is not None:
            labels = self.labels_given if shift else self.targets
            rows, looked = flat_positions(positions, labels, shift)
            if shift:
                first = rows % self.targets.shape[-1] == 0
                rows = torch.where((rows < 0) | first, -1, rows - 1)
            self.rows = rows
            if not looked:
                self._poisoned = self._do_not_fit(rows)
            return
        predicted = self.targets.reshape(-1) != IGNORE_INDEX
        compiling = torch.compiler.is_compiling()
        if compiling and capacity is None:
            return
        if capacity is not None and (compiling or predicted.device.type != "cpu"):
            self.rows = torch.nonzero_static(predicted, size=capacity, fill_value=-1).squeeze(1)
            self._poisoned = predicted.sum() > capacity
            return
        self.rows = predicted.nonzero().squeeze(1)
        if capacity is not None and len(self.rows) > capacity:
            raise ValueError(f"{len(self.rows)} labels in a batch, capacity is {capacity}")

    def _do_not_fit(self, rows: Tensor) -> Tensor:
        """Find on the device whether ``rows`` leave labels out or name a place twice."""
        labelled = self.targets.reshape(-1) != IGNORE_INDEX
        size = labelled.numel()
        rows = torch.where(rows < 0, size, rows).to(labelled.device)
        named = labelled.new_zeros(size + 1).scatter(0, rows, True)[:size]
        return (labelled & ~named).any() | (named.sum() != (rows < size).sum())

    def predicted(self, hidden: Tensor) -> Tensor:
        """Gather the chosen rows of ``hidden`` [B, T, H], as [1, R, H]."""
        if self.rows is None:
            return hidden
        rows = self.rows.to(hidden.device).clamp(min=0)
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows).unsqueeze(0)

    def labels(self) -> Tensor:
        """Gather what the chosen rows predict, [1, R]; [B, T] where all are computed."""
        if self.rows is None:
            return self.targets
        rows = self.rows.to(self.targets.device)
        labels = self.targets.reshape(-1).index_select(0, rows.clamp(min=0))
        return torch.where(rows >= 0, labels, IGNORE_INDEX).unsqueeze(0)

    def weigh(self, weights: Tensor | None, shift: bool) -> None:
        """Keep the weights of the call's labels, which move with them if they ``shift``.

        Raises:
            ValueError: the weight of what a row predicts is not finite; found where looking waits
                for nothing.
        """
        if weights is None:
            return
        self.weights = F.pad(weights[..., 1:], (0, 1)) if shift else weights
        if weights.device.type != "cpu" or torch.compiler.is_compiling():
            return
        bad = (self.targets != IGNORE_INDEX) & ~self.weights.float().isfinite()
        if bad.any():
            *row, column = bad.nonzero()[0].tolist()
            place = (*row, column + shift)
            raise ValueError(
                f"label_weights[{', '.join(map(str, place))}] is {weights[place].item()}: the "
                "weights of labelled tokens must be finite in float32"
            )

    def of_loss(self, labels: Tensor, device: torch.device) -> dict[str, Any]:
        """Return what the loss of ``labels``, the targets or those of the chosen rows, is told."""
        weights = self.weights
        if weights is not None and self.rows is not None and labels is not self.targets:
            rows = self.rows.to(weights.device).clamp(min=0)
            weights = weights.reshape(-1).index_select(0, rows).unsqueeze(0)
        if weights is not None:
            weights = weights.to(device)
        return {"num_items": self.num_items, "token_weights": weights}

    def with_sentences(self, loss: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
        """Add the loss of the rows' sentences: cross-entropy of ``logits`` [B, 2].

        Where ``num_items`` counts the labels of a whole update, a call's mean over its rows counts
        by its share of them.
        """
        if labels is None:
            return loss
        mean = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))
        if self.num_items is not None:
            here = (self.targets != IGNORE_INDEX).sum()
            whole = torch.as_tensor(self.num_items, device=here.device).clamp(min=1)
            mean = mean * (here / whole).to(mean.device)
        return loss + mean

    def settle(self, loss: Tensor) -> Tensor:
        """Return ``loss``, or NaN where a number would mislead.

        NaN with NaN gradients if the rows are not, each once, those with a label. In evaluation NaN
        if nothing is labelled, as stock: the mean over batches leaves it out, 0 would lower it.
        """
        if self._poisoned is not None:
            loss = loss * torch.where(self._poisoned, torch.nan, 1.0).to(loss.device)
        if not self.evaluation:
            return loss
        nothing = (self.targets == IGNORE_INDEX).all().to(loss.device)
        if isinstance(self.num_items, Tensor):  # other ranks may have labels
            nothing = nothing & (self.num_items == 0).to(loss.device)
        elif self.num_items:
            return loss
        return torch.where(nothing, torch.nan, loss)


class Now(threading.local):
    """What a thread is doing with the model: several may run one.

    Attributes:
        call: the call with labels that it is in.
        inside: whether it is in a call without labels.
        logits: whether calls return logits where they do not say themselves; None: the options'.
        read: whether an evaluation call's logits have been read since training.
    """

    call: LabelledCall | None = None
    inside: bool = False
    logits: bool | None = None
    read: bool = False

    def __reduce__(self) -> tuple[type["Now"], tuple[()]]:
        """Make a copy, which is in no call."""
        return Now, ()
