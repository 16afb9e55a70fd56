"""``maskft preview``: rows as the model would see them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from maskft.cli import UsageError
from maskft.config import DataArguments, MaskingArguments, ModelArguments, parse
from maskft.data import load_texts, row_length, tokenize
from maskft.models import load_tokenizer

STYLES = {"masked": "bold white on blue", "replaced": "bold white on red", "kept": "black on green"}


@dataclass
class PreviewArguments:
    """What to print."""

    rows: int = field(default=5, metadata={"help": "how many rows to print"})
    seed: int = field(default=42, metadata={"help": "seed of the masks"})
    epoch: int = field(default=0, metadata={"help": "epoch of the masks (rng=sample)"})


def pieces(tokenizer: Any, seen: list[int], labels: list[int]) -> Iterable[tuple[str, str, str]]:
    """(kind, what the model sees, what it must predict) of each token; kind "" is untouched."""
    for new, old in zip(seen, labels, strict=True):
        token = tokenizer.convert_ids_to_tokens(new)
        if old == -100:
            yield "", token, ""
            continue
        kind = "masked" if new == tokenizer.mask_token_id else "kept" if new == old else "replaced"
        yield kind, token, tokenizer.convert_ids_to_tokens(old)


def render(row: Iterable[tuple[str, str, str]], colour: bool) -> Text:
    """A row for a terminal, or with plain marks."""
    text = Text()
    for kind, token, original in row:
        if not kind:
            shown = token
        elif colour:
            shown = token if kind == "kept" else f"{token}←{original}"
        else:
            shown = {
                "masked": f"[{token.strip('[]<>')}<-{original}]",
                "replaced": f"{{{token}<-{original}}}",
                "kept": f"({token})",
            }[kind]
        text.append(shown, STYLES.get(kind, "") if colour else "")
        text.append(" ")
    return text


def main(argv: list[str]) -> int:
    kinds = (ModelArguments, DataArguments, MaskingArguments, PreviewArguments)
    model, data, masking, options = parse("preview", __doc__ or "", kinds, argv)
    data.check()
    if options.rows < 1:
        raise UsageError(f"--rows must be at least 1, got {options.rows}")
    tokenizer = load_tokenizer(model.model, model.trust_remote_code)
    collator = masking.collator(tokenizer, options.seed)
    data.validation_fraction = data.test_fraction = 0.0  # the first rows, whatever their split
    texts = load_texts(data)["train"]
    rows = tokenize(
        texts.select(range(min(options.rows, len(texts)))),
        tokenizer,
        row_length(tokenizer, None, data.max_length),
        masking.annotator(texts["text"]),
    )
    try:
        collator.set_epoch(options.epoch)
        batch = collator(rows.select(range(min(options.rows, len(rows)))).to_list())
    except ValueError as error:
        raise UsageError(str(error)) from None
    console = Console(highlight=False, soft_wrap=True)
    colour = console.is_terminal
    legend = [("masked", "[MASK]", "token"), ("replaced", "other", "token"), ("kept", "token", "")]
    console.print(Text("masked, replaced, kept: "), render(legend, colour), end="\n\n", sep="")
    counts = dict.fromkeys(("", *STYLES), 0)
    for ids, labels, real in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True
    ):
        row = list(pieces(tokenizer, ids[real].tolist(), labels[real].tolist()))
        special = sum(token in tokenizer.all_special_tokens for kind, token, _ in row if not kind)
        for kind, _, _ in row:
            counts[kind] += 1
        counts[""] -= special
        console.print(render(row, colour), end="\n\n")
    eligible, selected = sum(counts.values()), sum(counts[kind] for kind in STYLES)
    shares = ", ".join(f"{kind} {counts[kind] / max(selected, 1):.1%}" for kind in STYLES)
    console.print(
        f"{selected} of {eligible} maskable tokens selected ({selected / max(eligible, 1):.1%}, "
        f"asked {masking.mlm_probability:.1%}); of those {shares}"
    )
    return 0
