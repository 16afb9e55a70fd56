"""Read labelled texts: the columns of files or of a dataset, in three splits."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import DatasetDict, load_from_disk

from maskft.cli.data import OTHER_NAMES, SPLITS, split_of
from maskft.cli.formats import text_type
from maskft.cli.messages import UsageError, one_line
from maskft.cli.task_config import TaskDataArguments
from maskft.tasks.examples import Examples


def _separated(delimiter: str) -> Any:
    options = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    return lambda path: pyarrow.csv.read_csv(path, parse_options=options)


_READERS: dict[str, Any] = {
    ".jsonl": pyarrow.json.read_json,
    ".json": pyarrow.json.read_json,
    ".parquet": pyarrow.parquet.read_table,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
}
_Row = tuple[tuple[str, ...], str]  # texts, label


def load_examples(args: TaskDataArguments) -> tuple[dict[str, Examples], list[str]]:
    """Load (the examples of each split, the names of the labels by number).

    Rows without text are left out. Labels are those of the training split, in the order of a
    ClassLabel column, of numbers or of the alphabet. Splits that are not given are taken from the
    training examples by a hash of their texts, as ``maskft train`` does.

    Raises:
        UsageError: a file or column that cannot be read, a label that training does not have, a
            split that comes out empty.
    """
    given = _from_folder(args) if args.dataset else _from_files(args)
    shares = {"test": args.test_fraction, "validation": args.validation_fraction}
    shares = {name: 0.0 if name in given else share for name, share in shares.items()}
    if any(shares.values()):
        train = given.pop("train")
        names = [split_of(row[0][0], shares["test"], shares["validation"]) for row in train]
        for name in SPLITS:
            if name == "train" or shares[name]:
                given[name] = [row for row, own in zip(train, names, strict=True) if own == name]
    for name, rows in given.items():
        if not rows:
            raise UsageError(
                f"the {name} split is empty; give more examples or another --validation-fraction "
                "or --test-fraction (0 leaves a split out)"
            )
    labels = _labels(given["train"])
    numbers = {label: i for i, label in enumerate(labels)}
    for name, rows in given.items():
        unseen = Counter(label for _, label in rows if label not in numbers)
        if unseen:
            raise UsageError(
                f"the {name} split has labels that training does not: {dict(unseen)}; training has "
                f"{labels}"
            )
    return {name: _examples(rows, numbers) for name, rows in given.items()}, labels


def _examples(rows: list[_Row], numbers: dict[str, int]) -> Examples:
    columns = [*zip(*(texts for texts, _ in rows), strict=True)]
    pairs = list(columns[1]) if len(columns) > 1 else None
    return Examples(list(columns[0]), [numbers[label] for _, label in rows], pairs)


def _labels(rows: list[_Row]) -> list[str]:
    """Return the labels in order; numbers by size."""
    found = {label for _, label in rows}
    if len(found) < 2:
        raise UsageError(f"training has one label only, {found.pop()!r}: there is nothing to learn")
    whole = all(label.removeprefix("-").isdecimal() for label in found)
    return sorted(found, key=int) if whole else sorted(found)


def _from_files(args: TaskDataArguments) -> dict[str, list[_Row]]:
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    return {
        split: [row for name in names for row in _rows(_table(name), name, args)]
        for split, names in files.items()
        if names
    }


def _table(name: str) -> pyarrow.Table:
    path = Path(name)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{name}: expected a file that ends in {', '.join(_READERS)}")
    try:
        return reader(str(path))
    except (OSError, pyarrow.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise UsageError(f"{name}: {reason}") from None


def _from_folder(args: TaskDataArguments) -> dict[str, list[_Row]]:
    try:
        loaded = load_from_disk(str(args.dataset))
    except (OSError, ValueError, IndexError, pyarrow.ArrowException) as error:
        raise UsageError(f"--dataset {args.dataset}: {one_line(error)}") from None
    splits = dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
    splits = {OTHER_NAMES.get(name, name): split for name, split in splits.items()}
    if "train" not in splits:
        raise UsageError(f"--dataset {args.dataset} has no train split; it has {sorted(splits)}")
    found = {}
    for name in SPLITS:
        if name in splits:
            names = getattr(splits[name].features.get(args.label_column), "names", None)
            table = splits[name].with_format("arrow")[:]
            found[name] = _rows(table, f"--dataset {args.dataset}", args, names)
    return found


def _rows(
    table: pyarrow.Table, where: str, args: TaskDataArguments, names: list[str] | None = None
) -> list[_Row]:
    """Return the rows of a table that have text; ``names`` are those of a ClassLabel column."""
    options = dict.fromkeys(args.columns(), "--text-column and --pair-column")
    for column, option in {**options, args.label_column: "--label-column"}.items():
        if table.column_names.count(column) != 1:
            raise UsageError(
                f"{where}: no column {column!r} (or several); there are "
                f"{sorted(table.column_names)} ({option} name them)"
            )
    for column in args.columns():
        kind = table.schema.field(column).type
        if not text_type(kind):
            raise UsageError(f"{where}: column {column!r} holds {kind}, not text")
    kind = table.schema.field(args.label_column).type
    if not (text_type(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind)):
        raise UsageError(
            f"{where}: column {args.label_column!r} holds {kind}, and labels are text or whole "
            "numbers"
        )
    texts = [table[column].to_pylist() for column in args.columns()]
    found = []
    for i, (*row, label) in enumerate(
        zip(*texts, table[args.label_column].to_pylist(), strict=True)
    ):
        if not all(text and text.strip() for text in row):
            continue
        if label is None or (names is not None and label < 0):
            raise UsageError(f"{where}: row {i + 1} has no label in {args.label_column!r}")
        found.append((tuple(row), str(label if names is None else names[label])))
    return found
