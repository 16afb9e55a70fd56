"""``maskft generate``: fill in the masks of texts step by step, and say what it cost."""

import argparse
from typing import Any

from maskft.cli.messages import UsageError, say, shown
from maskft.cli.models import load
from maskft.cli.predict import stdin_lines
from maskft.insight.generate import generate


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("maskft generate", description=__doc__)
    made.add_argument("texts", nargs="+", metavar="TEXT", help="a text; - reads lines from stdin")
    made.add_argument(
        "--model", required=True,
        help="name or folder of a masked language model, or of a causal one trained as such",
    )  # fmt: skip
    made.add_argument("--length", type=int, default=0, help="masks to append to each text")
    made.add_argument(
        "--steps", type=int, help="at most so many for each text (default: its masks)"
    )
    made.add_argument("--temperature", type=float, default=0.0, help="0 (default): no randomness")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--batch-size", type=int, default=16, help="texts at a time (default 16)")
    made.add_argument("--special-tokens", action="store_true", help="they may be put in too")
    made.add_argument(
        "--shift", choices=("on", "off"),
        help="whether the row before a token predicts it (default: as the model's class does)",
    )  # fmt: skip
    made.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    return made


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    texts = [t for text in args.texts for t in (stdin_lines() if text == "-" else [text]) if t]
    for text in texts:
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise UsageError(f"the text {text!r} is not UTF-8")
    model, tokenizer = load(args.model, args.trust_remote_code, causal=True)
    options: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("length", "steps", "temperature", "seed", "special_tokens", "batch_size")
    }
    if args.shift is not None:
        options["shift"] = args.shift == "on"
    try:
        made = generate(model, tokenizer, texts, **options)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for text in made.texts:
        print(shown(text))
    say(
        f"{made.forward_passes} forward passes, {made.head_rows} rows of the head, "
        f"{made.seconds:.2f} seconds"
    )
    return 0
