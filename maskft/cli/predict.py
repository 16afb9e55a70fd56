"""``maskft predict``: print the most probable tokens for each mask in a text."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch

from maskft.cli.messages import UsageError, shown
from maskft.cli.models import load
from maskft.insight.windows import longest_row

LONGEST_LINE = 1 << 20  # characters: more than any model takes


@torch.no_grad()
def fill(model: Any, tokenizer: Any, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
    """List the ``top_k`` (token, probability) of each mask in ``text``, most probable first.

    Raises:
        UsageError: no mask in the text, no UTF-8, or more tokens than the model takes.
    """
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"the text {text!r} is not UTF-8")
    encoded = tokenizer(text, return_tensors="pt")
    ids = encoded["input_ids"][0]
    places = (ids == tokenizer.mask_token_id).nonzero().flatten().tolist()
    if not places:
        raise UsageError(f"no {tokenizer.mask_token} in {text!r}: that is this model's mask token")
    if len(ids) > (limit := longest_row(tokenizer, model)):
        raise UsageError(f"the text has {len(ids)} tokens, the model takes {limit}")
    model.eval()
    device = next(model.parameters()).device
    logits = model(**encoded.to(device)).logits[0, places].float()
    probability, token = logits.softmax(-1).topk(min(top_k, logits.shape[-1]), -1)
    return [
        [(tokenizer.decode([t]).strip(), p) for t, p in zip(ids_, ps, strict=True)]
        for ids_, ps in zip(token.tolist(), probability.tolist(), strict=True)
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("maskft predict", description=__doc__)
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a text; - reads lines from stdin")
    parser.add_argument("--model", required=True, help="name or folder of a masked language model")
    parser.add_argument("--top-k", type=int, default=5, help="answers for each mask (default 5)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    args = parser.parse_args(argv)
    if args.top_k < 1:
        raise UsageError(f"--top-k must be at least 1, got {args.top_k}")
    model, tokenizer = load(args.model, args.trust_remote_code)
    for text in args.texts:
        for line in stdin_lines() if text == "-" else [text]:
            if not line:
                continue
            found = fill(model, tokenizer, line, args.top_k)
            print(shown(line))
            for answers in found:
                print("  " + "  ".join(f"{shown(token)} {p:.3f}" for token, p in answers))
    return 0


def stdin_lines() -> Iterator[str]:
    """Yield the lines of standard input, stripped."""
    try:
        while line := sys.stdin.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise UsageError(f"a line of standard input is longer than {LONGEST_LINE:,}")
            yield line.strip()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not UTF-8 (byte {error.object[error.start]:#04x})"
        ) from None
