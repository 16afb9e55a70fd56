"""``maskft preview``: print rows as the model would see them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.text import Text
from torch import Tensor

from maskft.cli.config import (
    MASK_ONLY_COLUMN,
    DataArguments,
    MaskingArguments,
    ModelArguments,
    parse,
)
from maskft.cli.data import load_texts, row_length, tokenize
from maskft.cli.messages import UsageError, shown
from maskft.cli.models import load_tokenizer, outline
from maskft.strategy import ENTITY_COLUMN, WEIGHT_COLUMN, WORD_COLUMN, Diffusion, Tokens
from maskft.strategy.word_marks import WordMarks
from maskkernels import IGNORE_INDEX

STYLES = {"masked": "bold white on blue", "replaced": "bold white on red", "kept": "black on green"}
_OPEN, _CLOSE = "⟦", "⟧"  # no vocabulary has them


@dataclass
class PreviewArguments:
    """What to print."""

    rows: int = field(default=5, metadata={"help": "how many rows to print"})
    seed: int = field(default=42, metadata={"help": "seed of the masks"})
    epoch: int = field(default=0, metadata={"help": "epoch of the masks (rng=sample)"})


@dataclass(frozen=True)
class Piece:
    """A token as it is shown.

    Attributes:
        kind: "masked", "replaced" or "kept"; "" where the model need not predict it.
        token, original: what the model sees, and what it must predict.
        eligible: whether the token could have been chosen.
        entity: the number of its entity, -1 for none.
        word: the number of its word where the row says so, -1 for none.
    """

    kind: str
    token: str
    original: str = ""
    eligible: bool = True
    entity: int = -1
    word: int = -1


@dataclass(frozen=True)
class ShownDiffusion(Diffusion):
    """Keep the times that the rows of a batch had, to print them."""

    seen: list[float] = field(default_factory=list, init=False, compare=False)

    def time(self, tokens: Tokens) -> Tensor:
        t = super().time(tokens)
        self.seen[:] = t.tolist()
        return t


def pieces(
    tokenizer: Any, seen: list[int], labels: list[int], row: dict[str, Any], rest: bool = True
) -> list[Piece]:
    """Describe the tokens of a row without padding.

    Args:
        row: as it was before it was masked.
        rest: whether tokens in no entity may be masked too.
    """
    special, made = tokenizer.all_special_ids, []
    entities, words = (row.get(name, [-1] * len(seen)) for name in (ENTITY_COLUMN, WORD_COLUMN))
    may = row.get(MASK_ONLY_COLUMN, [1] * len(seen))
    for new, old, entity, word, allowed in zip(seen, labels, entities, words, may, strict=True):
        token = tokenizer.convert_ids_to_tokens(new)
        if old == IGNORE_INDEX:
            eligible = bool(allowed) and new not in special and (rest or entity >= 0)
            made.append(Piece("", token, "", eligible, entity, word))
            continue
        kind = "masked" if new == tokenizer.mask_token_id else "kept" if new == old else "replaced"
        made.append(Piece(kind, token, tokenizer.convert_ids_to_tokens(old), True, entity, word))
    return made


def render(row: Iterable[Piece], colour: bool) -> Text:
    """Render a row for a terminal, or with plain marks.

    Entities are underlined, or in double brackets; tokens of one word are joined where the row
    has words of its own; tokens that may not be masked are dim.
    """
    text, before = Text(), Piece("", "")
    for piece in row:
        opens = piece.entity >= 0 and piece.entity != before.entity
        if not colour and before.entity >= 0 and piece.entity != before.entity:
            text.append(_CLOSE)
        inside = colour and piece.entity >= 0 and not opens
        if before.token and not (piece.word >= 0 and piece.word == before.word):
            text.append(" ", "underline" if inside else "")
        if not colour and opens:
            text.append(_OPEN)
        style = STYLES.get(piece.kind, "" if piece.eligible else "dim")
        if piece.entity >= 0:
            style += " underline"
        text.append(_marked(piece, colour), style if colour else "")
        before = piece
    if not colour and before.entity >= 0:
        text.append(_CLOSE)
    return text


def _marked(piece: Piece, colour: bool) -> str:
    token, original = shown(piece.token), shown(piece.original)
    if not piece.kind:
        return token
    if colour:
        return token if piece.kind == "kept" else f"{token}←{original}"
    return {
        "masked": f"[{token.strip('[]<>')}<-{original}]",
        "replaced": f"{{{token}<-{original}}}",
        "kept": f"({token})",
    }[piece.kind]


def heaviest(tokenizer: Any, row: dict[str, Any], count: int = 6) -> Text:
    """Name the words of a row with the largest weights, and the one with the least."""
    ids, special = row["input_ids"], tokenizer.all_special_ids
    words = row.get(WORD_COLUMN) or WordMarks(tokenizer).units(torch.tensor([ids]))[0].tolist()
    weights: dict[str, float] = {}
    for _, places in groupby(range(len(ids)), key=words.__getitem__):
        ordinary = [i for i in places if ids[i] not in special]
        if ordinary:
            word = shown(tokenizer.decode([ids[i] for i in ordinary]).strip())
            weights[word] = row[WEIGHT_COLUMN][ordinary[0]]
    ranked = sorted(weights, key=weights.__getitem__, reverse=True)
    named = [f"{word} {weights[word]:.3g}" for word in ranked]
    last = f" ... {named[-1]}" if named[count:] else ""
    return Text(f"weights: {', '.join(named[:count])}{last}")  # not markup


def row_times(rows: list[list[Piece]], strategy: ShownDiffusion, i: int) -> tuple[Text, float]:
    """Say at what time row ``i`` was masked; return also the expected rate of all rows' tokens."""
    eligible = torch.tensor([sum(piece.eligible for piece in row) for row in rows]).double()
    rates = strategy.rate(torch.tensor(strategy.seen, dtype=torch.float64))
    mean = float((rates * eligible).sum() / eligible.sum().clamp(min=1))
    selected = sum(piece.kind != "" for piece in rows[i])
    return Text(
        f"t {strategy.seen[i]:.3f}: {selected} of {int(eligible[i])} maskable tokens selected, "
        f"asked {rates[i]:.1%}"
    ), mean


def summary(rows: list[list[Piece]], rate: float) -> str:
    """Count what was selected of what could be, and what became of it."""
    every = [piece for row in rows for piece in row]
    counts = {kind: sum(piece.kind == kind for piece in every) for kind in STYLES}
    eligible, selected = sum(piece.eligible for piece in every), sum(counts.values())
    shares = ", ".join(f"{kind} {n / max(selected, 1):.1%}" for kind, n in counts.items())
    line = (
        f"{selected} of {eligible} maskable tokens selected ({selected / max(eligible, 1):.1%}, "
        f"asked {rate:.1%}); of those {shares}"
    )
    entities = [
        [p for p in row if p.entity == n] for row in rows for n in {p.entity for p in row} - {-1}
    ]
    if entities:
        chosen = sum(any(piece.kind for piece in entity) for entity in entities)
        line += (
            f"\n{len(entities)} entities of {sum(map(len, entities))} tokens, {chosen} of them "
            "selected"
        )
    return line


def main(argv: list[str]) -> int:
    kinds = (ModelArguments, DataArguments, MaskingArguments, PreviewArguments)
    model, data, masking, options = parse("preview", __doc__ or "", kinds, argv)
    data.check()
    sides = masking.sides(data)
    if options.rows < 1:
        raise UsageError(f"--rows must be at least 1, got {options.rows}")
    tokenizer = load_tokenizer(model.model, model.trust_remote_code)
    collator = masking.collator(tokenizer, options.seed)
    shown_times = None
    if isinstance(collator.strategy, Diffusion):
        shown_times = ShownDiffusion(**vars(collator.strategy))
        collator = replace(collator, strategy=shown_times)
    data.validation_fraction = data.test_fraction = 0.0  # the first rows, whatever their split
    texts = load_texts(data)["train"]
    tokenized = first_rows(
        texts.select(range(min(options.rows, len(texts)))),
        options.rows,
        tokenizer,
        row_length(tokenizer, _model(model), data.max_length),
        masking.annotator(texts),
        sides,
        data.stride,
    )
    examples = tokenized.select(range(min(options.rows, len(tokenized)))).to_list()
    try:
        collator.set_epoch(options.epoch)
        batch = collator([dict(example) for example in examples])
    except ValueError as error:
        raise UsageError(str(error)) from None
    real = batch["attention_mask"].bool()
    rows = [
        pieces(
            tokenizer,
            ids[kept].tolist(),
            labels[kept].tolist(),
            example,
            masking.entity_rest != "none",
        )
        for ids, labels, kept, example in zip(
            batch["input_ids"], batch["labels"], real, examples, strict=True
        )
    ]
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    colour = console.is_terminal
    console.print(*legend(masking.strategy, colour), end="\n\n", sep="")
    rate = masking.mlm_probability
    for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
        console.print(render(row, colour))
        if shown_times is not None:
            line, rate = row_times(rows, shown_times, i)
            console.print(line, style="dim" if colour else None)
        if masking.strategy == "keyword":
            console.print(heaviest(tokenizer, example), style="dim" if colour else None)
        console.print()
    console.print(summary(rows, rate))
    return 0


def first_rows(
    texts: Any, count: int, tokenizer: Any, max_length: int, annotator: Any = None,
    mask_only: tuple[int, ...] | None = None, stride: int = 0,
) -> Any:  # fmt: skip
    """Tokenize at least the first ``count`` rows; of a text of megabytes, its beginning alone.

    Annotations and the parts of a pair depend on whole texts, so these are not cut.
    """
    room = count * max_length * 100  # characters: few tokens have so many
    if annotator is None and "pair" not in texts.column_names:
        whole: list[str] = []
        for text in texts["text"]:
            if len(text) > room:
                cut = Dataset.from_dict({"text": [*whole, text[:room]]})
                rows = tokenize(cut, tokenizer, max_length, stride=stride)
                if len(rows) > count:  # the last one may be cut
                    return rows
                break
            whole.append(text)
    return tokenize(texts, tokenizer, max_length, annotator, mask_only, stride)


def _model(args: ModelArguments) -> Any:
    """Return the model without its weights; None for a folder that holds a tokenizer alone."""
    try:
        return outline(args.model, args.trust_remote_code, weights=False)
    except UsageError:
        return None


def legend(strategy: str, colour: bool) -> tuple[Text, Text]:
    marks = [
        Piece("masked", "[MASK]", "token"), Piece("replaced", "other", "token"),
        Piece("kept", "token"),
    ]  # fmt: skip
    names = "masked, replaced, kept"
    if strategy == "entity":
        marks += [Piece("", "an", entity=0), Piece("", "entity", entity=0)]
        names += ", entity"
    return Text(f"{names}: "), render(marks, colour)
