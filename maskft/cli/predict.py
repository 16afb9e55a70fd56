"""``maskft predict``: print the most probable tokens for each mask in a text."""

import argparse
import sys
from typing import Any

import torch

from maskft.cli.messages import UsageError
from maskft.cli.models import load


@torch.no_grad()
def fill(model: Any, tokenizer: Any, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
    """List the ``top_k`` (token, probability) of each mask in ``text``, most probable first.

    Raises:
        UsageError: no mask in the text, or the text is longer than the model takes.
    """
    encoded = tokenizer(text, return_tensors="pt")
    ids = encoded["input_ids"][0]
    places = (ids == tokenizer.mask_token_id).nonzero().flatten().tolist()
    if not places:
        raise UsageError(f"no {tokenizer.mask_token} in {text!r}: that is this model's mask token")
    limit = min(
        tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1 << 30)
    )
    if len(ids) > limit:
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
        for line in (entry.strip() for entry in sys.stdin) if text == "-" else [text]:
            if not line:
                continue
            found = fill(model, tokenizer, line, args.top_k)
            print(line)
            for answers in found:
                print("  " + "  ".join(f"{token} {p:.3f}" for token, p in answers))
    return 0
