"""Run the ``maskft`` command: train, preview, predict, generate, score, compare, doctor.

    maskft train --model bert-base-uncased --train-file notes.txt --output-dir notes-bert
    maskft preview --model bert-base-uncased --train-file notes.txt --strategy whole_word
    maskft score --model notes-bert texts.jsonl --output scores.jsonl
    maskft compare bert-base-uncased notes-bert --train-file held-out.txt
    maskft predict --model notes-bert "The cat sat on the [MASK]."
    maskft generate --model notes-bert --length 8 "The cat"
    maskft doctor bert-base-uncased

A user's mistake ends in one sentence on standard error and exit status 2, an interrupted training
run in 130. Nothing heavy is imported before a subcommand runs.
"""

import os
import sys
from importlib import import_module
from io import TextIOWrapper

from maskft.cli.messages import UsageError, say
from maskft.extras import require

# The module of each command, the packages of the extra "train" that it needs, and what it does
COMMANDS = {
    "train": (
        "maskft.cli.train",
        ("accelerate", "datasets", "rich"),
        "masked fine-tuning of a model on text, JSONL, Parquet or a dataset",
    ),
    "preview": (
        "maskft.cli.preview",
        ("datasets", "rich"),
        "print rows as the model would see them, with the realised rates",
    ),
    "score": (
        "maskft.cli.score",
        ("datasets", "rich"),
        "log-probabilities of texts, pairs of texts or variants of a sequence",
    ),
    "compare": (
        "maskft.cli.compare",
        ("datasets", "rich"),
        "the difference between two models on the same text under the same masks",
    ),
    "predict": ("maskft.cli.predict", (), "the most probable tokens for each mask in a text"),
    "generate": (
        "maskft.cli.generate",
        (),
        "fill in the masks of a text step by step, and say what it cost",
    ),
    "doctor": (
        "maskft.cli.doctor",
        (),
        "what fuse_loss does to a model, which backend runs, and why",
    ),
}


def usage() -> str:
    lines = ["usage: maskft COMMAND [options]", ""]
    lines += [f"  maskft {name:<8} {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "maskft COMMAND --help lists the options of a command."])


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"maskft: unknown command {argv[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module, packages, _ = COMMANDS[argv[0]]
    try:
        require(packages, "train")
    except ModuleNotFoundError as error:
        print(f"maskft {argv[0]}: {error}", file=sys.stderr)
        return 2
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot write
    try:
        status = import_module(module).main(argv[1:])
        sys.stdout.flush()
        return status
    except UsageError as error:
        say(f"maskft {argv[0]}: {error}")
        return 2
    except KeyboardInterrupt:
        say(f"maskft {argv[0]}: interrupted")
        return 130
    except BrokenPipeError:
        if argv[0] == "train":  # it has other pipes
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1  # whatever reads the output has seen enough, as `head` does
