"""Number the words of a batch by the marks of a vocabulary, characters in pieces put together."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import get_worker_info

from maskft.strategy.scripts import LETTER, LINK, MARK, kinds
from maskft.strategy.words import (
    CUT,
    DEPENDS,
    JOINS,
    LETTERS,
    LINKS,
    REST,
    no_word_marks,
    read_vocabulary,
)
from maskkernels import units_from_word_ids, word_units
from maskkernels.units import ENDS, STARTS

LONG = 32  # tokens of a word that make it long, if it is half of its row
_LOOKS = 64  # batches that are looked at for long words: the first ones, and one in so many


class WordMarks:
    """Number words by the marks of a tokenizer's vocabulary, on a device.

    Attributes:
        known: false where the vocabulary has none.
        table: uint8 [V], ``maskft.strategy.words.word_table``; empty where it has none.
    """

    def __init__(self, tokenizer: Any, device: torch.device | str = "cpu") -> None:
        marks = read_vocabulary(tokenizer)
        self.known = marks is not None
        self._refusal = str(no_word_marks(tokenizer))
        self._batches, self._warned = 0, False
        self.table = torch.zeros(0, dtype=torch.uint8, device=device)
        self._depends = False  # where words begin can depend on characters in pieces
        if marks is None:
            return
        self.table = torch.from_numpy(marks.flags).to(device)
        self._depends = bool((marks.pieces & DEPENDS).any())
        if not self._depends:
            return
        size = marks.flags.size

        def with_other_ids(entries: Any) -> Tensor:
            """Append an entry for ids that ``cover`` adds, and one for ids outside ``table``."""
            found = torch.zeros(size + 2, dtype=torch.int32, device=device)
            found[:size] = torch.from_numpy(entries).to(device)
            return found

        self._pieces = (marks.pieces & DEPENDS) != 0
        self._codes = with_other_ids(marks.flags | marks.pieces << _PIECES)
        self._codes[size] = STARTS | ENDS
        self._tails, self._heads = with_other_ids(marks.tails), with_other_ids(marks.heads)
        changes, kind = kinds()
        self._changes = torch.from_numpy(changes).to(device)
        self._kind = torch.from_numpy(kind).to(device)

    def cover(self, size: int) -> None:
        """Lengthen ``table`` to ``size`` ids: each id that the vocabulary lacks is a word."""
        missing = size - self.table.numel()
        if self.known and missing > 0:
            self.table = functional.pad(self.table, (0, missing), value=STARTS | ENDS)

    def units(self, input_ids: Tensor, **limits: Any) -> Tensor:
        """Number the words of each row: int64, like ``input_ids``, -1 where nothing may be masked.

        What ``maskkernels.word_units`` makes of ``table``, but for tokens that hold part of a
        character: those are put together first, so that a character is never in two words and
        counts as what it is.

        Args:
            input_ids: int32 or int64 [B, T], or flat [N] with ``cu_seqlens``.
            limits: the other arguments of ``word_units``.

        Raises:
            ValueError: the vocabulary has no word marks.
        """
        if not self.known:
            raise ValueError(self._refusal)
        if not self._depends_here(input_ids):
            return word_units(input_ids, self.table, **limits)
        begins = self._begins(input_ids, limits.get("cu_seqlens"))
        return units_from_word_ids(input_ids, begins.cumsum(-1), **limits)

    def _depends_here(self, ids: Tensor) -> bool:
        """Return whether this batch needs ``_begins``; yes where looking would wait."""
        if not self._depends or ids.device.type != "cpu" or torch.compiler.is_compiling():
            return self._depends
        return bool(self._pieces.take(ids.numpy(), mode="clip").any())

    def _begins(self, ids: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """Find the tokens that begin a word: bool, like ``ids``."""
        added = self._codes.numel() - 2
        outside = (ids < 0) | (ids >= self.table.numel())
        known = torch.where(outside, added + 1, ids.clamp(max=added)).reshape(-1)
        codes, tail, head = (
            table.index_select(0, known).view(ids.shape)
            for table in (self._codes, self._tails, self._heads)
        )
        if cu_seqlens is not None:  # a row does not go on with a character of the one before it
            row = torch.zeros(head.numel() + 1, dtype=torch.bool, device=head.device)
            row.index_fill_(0, cu_seqlens.long().clamp(0, head.numel()), True)
            head = head.masked_fill(row[:-1], 0)
        starts, ends = (codes & STARTS).bool(), (codes & ENDS).bool()
        joins = (codes & (JOINS << _PIECES)).bool()
        is_rest = (codes & (REST << _PIECES)).bool()
        links = (codes & (LINKS << _PIECES)).bool()

        # Follow each character that a token cuts short through at most three tokens.
        cut_first = (codes & (CUT << _PIECES)).bool()
        point, lacking = tail >> 2, tail & 3
        done = [torch.zeros_like(starts)] * 4  # after so many more tokens
        for step in (1, 2, 3):
            following = _shifted(head, step)
            held = following & 3
            taken = torch.minimum(held, lacking)
            point = (point << 6 * taken) | (following >> 2) >> 6 * (held - taken)
            done[step] = (lacking > 0) & (taken == lacking)
            lacking = torch.where(taken > 0, lacking - taken, 0)
        place = torch.bucketize(point, self._changes, out_int32=True, right=True)
        kind = self._kind.index_select(0, place.view(-1)).view(ids.shape)
        letter, whole = kind == LETTER, done[1] | done[2] | done[3]
        starts = torch.where(whole & cut_first, letter, starts)
        joins = joins | (whole & cut_first & ((kind == MARK) | (kind == LINK)))
        for step in (1, 2, 3):
            ends = ends | (_shifted(done[step] & letter, -step) & is_rest)
            links = links | (_shifted(done[step] & (kind == LINK), -step) & is_rest)
        lettered = torch.where(whole & cut_first, letter, (codes & (LETTERS << _PIECES)).bool())
        before = _shifted(ends, -1)
        return (starts | (before & ~joins)) & ~(_shifted(links, -1) & lettered)

    def watch(self, units: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """Warn once of words so long that most rows would get no mask; returns ``units``.

        Rows are looked at on the CPU only, in the first batches and some of the later ones.
        """
        if self._warned or units.device.type != "cpu" or torch.compiler.is_compiling():
            return units
        self._batches += 1
        worker = get_worker_info()
        if (self._batches > _LOOKS and self._batches % _LOOKS) or (worker and worker.id):
            return units
        flat = units.reshape(-1)
        if not _any_long(flat.numpy()):  # nearly always, at a hundredth of the work
            return units
        if cu_seqlens is None:
            bounds = torch.arange(units.shape[0] + 1) * units.shape[1]
        else:
            bounds = cu_seqlens.long().clamp(0, flat.numel())
        token = torch.nonzero(flat >= 0).view(-1)
        row = torch.bucketize(token, bounds[1:], right=True)
        sizes = torch.bincount(bounds[row] + flat[token], minlength=flat.numel())
        if not sizes.numel() or sizes.max() < LONG:
            return units
        place = torch.nonzero(sizes >= LONG).view(-1)
        size, row_of = sizes[place], torch.bucketize(place, bounds[1:], right=True)
        whole = torch.bincount(row, minlength=bounds.numel())[row_of]
        rows = torch.unique(row_of[2 * size >= whole])
        if rows.numel():
            self._warned = True
            at = int((size * (2 * size >= whole)).argmax())
            warnings.warn(
                f"{rows.numel()} of {bounds.numel() - 1} rows are little more than one word: one "
                f"word has {int(size[at])} of the {int(whole[at])} tokens of its row that may be "
                "masked. Such a row gets no mask at all or is masked nearly whole. Where the text "
                "has no spaces between words, give the words in a word_ids column "
                "(maskft.annotate.WordIds; on the command line --words), mask runs of tokens "
                '(NGram(n, words=False), Span(words=False)) or single tokens (strategy="random").',
                stacklevel=2,
            )
        return units


def _any_long(units: np.ndarray) -> bool:
    """Return whether ``LONG`` tokens in a row have one unit, over the ends of rows too."""
    same = units[1:] == units[:-1]
    length = 2  # same[i]: so many tokens from i on have one unit
    while length < LONG:
        step = min(length - 1, LONG - length)
        same = same[step:] & same[:-step]
        length += step
    return bool((same & (units[LONG - 1 :] >= 0)).any())


_PIECES = 2  # bits of flags in front of the pieces in a code


def _shifted(values: Tensor, by: int) -> Tensor:
    """Put ``values[..., i + by]`` at i, zero beyond the ends of the last dimension."""
    out = torch.zeros_like(values)
    length = values.shape[-1]
    if abs(by) < length:
        if by > 0:
            out[..., : length - by] = values[..., by:]
        else:
            out[..., -by:] = values[..., : length + by]
    return out
