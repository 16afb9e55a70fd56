"""Read files into rows of text: the columns that are needed, as text, and nothing else of the file.

A file is opened by its name as it is, never as a pattern. It is checked and read in one pass, and
what was read is kept in the cache folder of ``datasets`` under the file's path, size and time of
change, so that a later run finds it there, and with it the rows tokenized from it.
"""

import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets import Dataset

from maskft.cli.formats import refuse_annotated
from maskft.cli.messages import UsageError

NAMES = ("text", "pair")
LONGEST_TEXT = 1 << 23  # characters; tokenizing takes some 170 bytes for each
_SUFFIXES = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
}
_VERSION = 1  # of what is kept: a change to what is read from the same file changes it
_BATCH, _BATCH_TEXT = 1000, 1 << 24  # rows and characters
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON = json.JSONDecoder(parse_int=len)  # no number is used, and int() refuses 4,301 digits

Row = tuple[str | None, ...]


def read(name: str, columns: list[str]) -> Dataset:
    """Read the rows of a file that have text in each of ``columns``: "text", and "pair" if two.

    A text file has one column, whatever ``columns`` calls it. In JSON the last of equal keys
    counts, and null is a row without text.

    Raises:
        UsageError: the file cannot be read, or a column holds something other than text.
    """
    path = Path(name)
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{name}: expected a file that ends in {', '.join(_SUFFIXES)}")
    try:
        about = path.stat()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise UsageError(f"{name}: {'no such file' if missing else one_line(error)}") from None
    if not stat.S_ISREG(about.st_mode):
        raise UsageError(f"{name}: not a regular file")
    times = (about.st_mtime_ns, about.st_ctime_ns)  # another file of this name has another ctime
    stamp = (_VERSION, str(path.resolve()), about.st_size, times, kind, columns)
    digest = blake2b(repr(stamp).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    kept = Path(datasets.config.HF_DATASETS_CACHE) / "maskft" / digest / "texts.arrow"
    with cache_errors():
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            rows = _readable(path, _READERS[kind](path, columns))
            _write(kept, NAMES[: len(columns)], _batches(path, rows))
        return Dataset.from_file(str(kept))


@contextmanager
def cache_errors() -> Iterator[None]:
    """Turn what keeps the cache of ``datasets`` from being written into one sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to the cache {error.filename or datasets.config.HF_DATASETS_CACHE}: "
            f"{error.strerror or one_line(error)} (HF_DATASETS_CACHE names another folder)"
        ) from None


def lines(path: Path, longest: int) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line that is not blank; refuse what is no UTF-8 text."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(longest + 1):
            number += 1
            if len(line) > longest and b"\0" not in line:
                raise UsageError(
                    f"{path}: line {number} is longer than {longest:,} bytes; a row is a line: "
                    "divide it into several"
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}: line {number} is not UTF-8 (byte {error.start + 1} of the line is "
                    f"{line[error.start]:#04x}); convert the file to UTF-8"
                ) from None
            if "\0" in text:
                raise UsageError(f"{path}: line {number} has a NUL byte; this is no text file")
            if text.strip():
                yield number, text


def text_type(kind: pyarrow.DataType) -> bool:
    """Tell whether an Arrow type is text, or nothing but nulls."""
    kind = getattr(kind, "storage_type", kind)
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in ("string", "large_string", "string_view", "null")


def refuse_column(where: str, column: str, schema: pyarrow.Schema) -> None:
    """Refuse a column of text that is missing, there twice, or of another type."""
    found = schema.get_all_field_indices(column)
    if not found:
        raise missing_column(where, column, schema.names)
    if len(found) > 1:
        raise UsageError(f"{where}: {len(found)} columns are called {column!r}; rename them")
    kind = schema.field(found[0]).type
    if not text_type(kind):
        raise UsageError(f"{where}: column {column!r} holds {kind}, not text")


def missing_column(name: str, column: str, columns: Any) -> UsageError:
    return UsageError(
        f"{name}: no column {column!r}; there are {sorted(columns)} (--text-column and "
        "--pair-column name them)"
    )


def too_long(where: str, length: int) -> UsageError:
    return UsageError(
        f"{where}: a text of {length:,} characters; at most {LONGEST_TEXT:,} are tokenized at "
        "once: divide it into several"
    )


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _write(kept: Path, names: tuple[str, ...], batches: Iterator[list[Row]]) -> None:
    """Write ``batches``, under a temporary name until they are whole: other runs read the cache."""
    schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as sink:
        try:
            with pyarrow.ipc.new_stream(sink, schema) as writer:
                for rows in batches:
                    columns = map(list, zip(*rows, strict=True))
                    writer.write_table(
                        pyarrow.table(dict(zip(names, columns, strict=True)), schema)
                    )
            sink.flush()
            os.replace(sink.name, kept)
        except BaseException:
            os.unlink(sink.name)
            raise


def _batches(path: Path, rows: Iterator[tuple[str, Row]]) -> Iterator[list[Row]]:
    """Yield batches of the rows that have text in every column."""
    batch: list[Row] = []
    size = 0
    for place, row in rows:
        texts = [text for text in row if text and text.strip()]
        if len(texts) < len(row):
            continue
        for text in texts:
            if len(text) > LONGEST_TEXT:
                raise too_long(f"{path}: {place}", len(text))
            size += len(text)
        batch.append(row)
        if len(batch) == _BATCH or size > _BATCH_TEXT:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _readable(path: Path, rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    try:
        yield from rows
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or one_line(error)}") from None


def _text_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, Row]]:
    if len(columns) > 1:
        raise UsageError(f"{path}: a text file has no column {columns[1]!r} (--pair-column)")
    found = lines(path, LONGEST_TEXT)
    first = list(islice(found, 200))
    if not first:
        raise UsageError(f"{path}: the file is empty")
    refuse_annotated(path, [text.strip() for _, text in first])
    for number, text in chain(first, found):
        for part in text.rstrip("\r\n").split("\r"):  # a lone CR ends a line too
            yield f"line {number}", (part,)


def _json_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, Row]]:
    empty = True
    for number, line in lines(path, 8 * LONGEST_TEXT):  # other columns may be long, and escaped
        empty = False
        place = f"line {number}"
        try:
            row = _JSON.decode(line)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}: {place} is not JSON ({error.msg} at column {error.colno}); "
                "expected one object a line"
            ) from None
        except RecursionError:
            raise UsageError(f"{path}: {place} is JSON that is nested too deeply") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path}: {place} is not a JSON object")
        for column in columns:
            if column not in row:
                raise missing_column(f"{path}, {place}", column, row)
            text = row[column]
            if text is None:
                continue
            if not isinstance(text, str):
                kind = type(text).__name__
                raise UsageError(f"{path}: {place}: {column!r} holds {kind}, not text")
            if not text.isascii() and (lone := _LONE_SURROGATE.search(text)):
                raise UsageError(
                    f"{path}: {place}: {column!r} has half a surrogate pair "
                    f"(\\u{ord(lone.group()):04x} at character {lone.start() + 1}), which is no "
                    "character; remove it"
                )
        yield place, tuple(row[column] for column in columns)
    if empty:
        raise UsageError(f"{path}: the file is empty")


def _parquet_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, Row]]:
    try:
        with path.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
            schema = file.schema_arrow
            for column in columns:
                refuse_column(str(path), column, schema)
            if not file.metadata.num_rows:
                raise UsageError(f"{path}: the file is empty")
            number = 0
            for batch in file.iter_batches(_BATCH, columns=columns):
                texts = [batch.column(batch.schema.get_field_index(name)) for name in columns]
                for row in range(batch.num_rows):
                    number += 1
                    try:
                        yield f"row {number}", tuple(column[row].as_py() for column in texts)
                    except UnicodeDecodeError:
                        raise UsageError(f"{path}: row {number} is not UTF-8") from None
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: not a Parquet file ({one_line(error)})") from None


_READERS: dict[str, Callable[[Path, list[str]], Iterator[tuple[str, Row]]]] = {
    "text": _text_rows,
    "json": _json_rows,
    "parquet": _parquet_rows,
}
