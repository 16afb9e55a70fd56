"""Refuse files that are called .txt and hold something other than a text a line."""

import re
from pathlib import Path

from maskft.cli.messages import UsageError

_SEQUENCE = re.compile(r"[A-Z*.-]+|[a-z*.-]+")
_TAG = re.compile(r"O|[BIESLUM]-\S+")  # IOB, BIOES, BILOU


def refuse_annotated(path: Path, lines: list[str]) -> None:
    """Refuse sequences with headers (FASTA, FASTQ) and a token a line with its tags (CoNLL).

    Args:
        lines: the first lines of the file that are not blank, stripped.
    """
    if _fasta(lines) or _fastq(lines):
        kind = "FASTA" if lines[0].startswith(">") else "FASTQ"
        raise UsageError(
            f"{path}: this is {kind}, and its headers (such as {lines[0][:40]!r}) would be masked "
            "as text; write each sequence on a line of its own, without headers"
        )
    if _conll(lines):
        raise UsageError(
            f"{path}: this is CoNLL, a token a line with its tags (such as {lines[-1][:40]!r}); "
            "write the tokens of each sentence on one line, without tags"
        )


def _fasta(lines: list[str]) -> bool:
    """Tell whether lines are headers after ">", first of all, and letters of sequences."""
    if not lines or not lines[0].startswith(">"):
        return False
    others = [line for line in lines if not line.startswith((">", ";"))]
    return bool(others) and all(map(_SEQUENCE.fullmatch, others))


def _fastq(lines: list[str]) -> bool:
    """Tell whether lines come in fours: @name, sequence, +, as many marks of quality."""
    records = [lines[i : i + 4] for i in range(0, len(lines) - 3, 4)]
    return bool(records) and all(
        name.startswith("@") and _SEQUENCE.fullmatch(bases) and plus.startswith("+")
        and len(marks) == len(bases)
        for name, bases, plus, marks in records
    )  # fmt: skip


def _conll(lines: list[str]) -> bool:
    """Tell whether lines are of as many fields, the last an IOB tag, or CoNLL-U's ten."""
    if lines and lines[0].startswith(("-DOCSTART-", "#begin document")):
        return True
    tokens = [line for line in lines if not line.startswith("#")]
    if len(tokens) < 2:
        return False
    columns = [token.split("\t") for token in tokens]
    if all(len(fields) == 10 and fields[0][:1].isdigit() for fields in columns):
        return True
    fields = [token.split() for token in tokens]
    return len(set(map(len, fields))) == 1 and all(
        len(parts) > 1 and _TAG.fullmatch(parts[-1]) for parts in fields
    )
