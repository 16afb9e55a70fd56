"""Read each format of text files, row by row: the columns that are needed, as text.

A reader is handed a path and the names of the columns; it yields (place, texts of the row). What it
cannot read it refuses in one sentence that says where.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from maskft.cli.annotated import refuse_annotated
from maskft.cli.messages import UsageError, one_line

LONGEST_TEXT = 1 << 23  # characters; tokenizing takes some 170 bytes for each
_ROWS, _CHARACTERS = 1000, 1 << 16  # read at a time, of Parquet and of a JSON array
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON = json.JSONDecoder(parse_int=len)  # no number is used, and int() refuses 4,301 digits
_BLANK = re.compile(r"\s*")
_MISSING = object()

Row = tuple[str | None, ...]
Rows = Iterator[tuple[str, Row]]


def readable(path: Path) -> bool:
    """Tell by the end of a file's name whether there is a reader of it."""
    return _format(path) in _READERS


def reader_of(path: Path) -> Callable[[Path, list[str]], Rows]:
    """Choose the reader of a file by the end of its name; refuse one that has none."""
    if readable(path):
        return _READERS[_format(path)]
    raise UsageError(f"{path}: expected a file that ends in {endings()}")


def endings() -> str:
    """List the ends of names that are read."""
    return f"{', '.join(_READERS)}, or one of these but .parquet with .gz"


def lines(path: Path, longest: int) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line that is not blank; refuse what is no UTF-8 text."""
    number = 0
    with opened(path) as file:
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


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if its name ends in .gz; refuse what is not compressed."""
    if path.suffix.lower() != ".gz":
        with path.open("rb") as file:
            yield file
        return
    try:
        with gzip.open(path) as file:
            yield file  # type: ignore[misc]  # reads as any other
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a whole gzip file ({one_line(error)})") from None


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


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"] and suffixes[-2:-1] != [".parquet"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _text_rows(path: Path, columns: list[str]) -> Rows:
    _one_column(path, columns, "a text file")
    found = lines(path, LONGEST_TEXT)
    first = list(islice(found, 200))
    refuse_annotated(path, [text.strip() for _, text in first])
    for number, text in chain(first, found):
        for part in text.rstrip("\r\n").split("\r"):  # a lone CR ends a line too
            yield f"line {number}", (part,)


def _fasta_rows(path: Path, columns: list[str]) -> Rows:
    """Yield each sequence, its lines joined; headers are no text."""
    _one_column(path, columns, "a FASTA file")
    record, begin, length = 0, 0, 0
    parts: list[str] = []
    for number, line in lines(path, LONGEST_TEXT):
        text = line.strip()
        if text.startswith(">"):
            if record:
                yield f"record {record}, line {begin}", ("".join(parts),)
            record, begin, parts, length = record + 1, number, [], 0
        elif not text.startswith(";"):
            if not record:
                raise UsageError(
                    f"{path}: line {number} is before the first header; a FASTA record begins "
                    f"with '>', this line with {text[:20]!r}"
                )
            parts.append("".join(text.split()))
            length += len(parts[-1])
            if length > LONGEST_TEXT:
                raise too_long(f"{path}: record {record}, line {begin}", length)
    if record:
        yield f"record {record}, line {begin}", ("".join(parts),)


def _json_rows(path: Path, columns: list[str]) -> Rows:
    with opened(path) as file:
        is_array = path.suffixes and _format(path) == ".json" and _first(file) == b"["
    values = _array(path) if is_array else _json_lines(path)
    for place, row in values:
        if not isinstance(row, dict):
            raise UsageError(f"{path}: {place} is not a JSON object")
        texts = [_member(row, column) for column in columns]
        for column, text in zip(columns, texts, strict=True):
            if text is _MISSING:
                raise missing_column(f"{path}, {place}", column, row)
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
        yield place, tuple(texts)


def _member(row: dict[str, Any], column: str) -> Any:
    """Look up a column; "a.b" is the member b of the object a, unless there is a column "a.b"."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if value is None:
            return None
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _first(file: IO[bytes]) -> bytes:
    """Read the first byte that is not blank, nor part of a byte order mark."""
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start[:1]


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in lines(path, 8 * LONGEST_TEXT):  # other columns may be long, and escaped
        place = f"line {number}"
        try:
            yield place, _JSON.decode(line)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}: {place} is not JSON ({error.msg} at column {error.colno}); "
                "expected one object a line"
            ) from None
        except RecursionError:
            raise UsageError(f"{path}: {place} is JSON that is nested too deeply") from None


def _array(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a JSON array one by one, without holding the others."""
    number = 0
    with opened(path) as file:
        text = _Ahead(io.TextIOWrapper(file, encoding="utf-8-sig"))
        try:
            text.skip(1)  # the bracket
            if text.mark() == "]":
                return
            while True:
                number += 1
                yield f"item {number}", text.value()
                if (mark := text.mark()) not in (",", "]"):
                    raise UsageError(
                        f"{path}: expected , or ] after item {number}, "
                        + (f"found {mark!r}" if mark else "but the file ends")
                    )
                text.skip(1)
                if mark == "]":
                    return
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}: item {number} is not JSON ({error.msg})") from None
        except RecursionError:
            raise UsageError(f"{path}: item {number} is JSON that is nested too deeply") from None
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path}: not UTF-8 after item {number} ({one_line(error)}); convert the file"
            ) from None


class _Ahead:
    """Text of JSON, read on as far as the next value goes."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.held, self.at = file, "", 0
        self._tried = -1  # how long the text was that was not a whole value

    def mark(self) -> str:
        """Return the next character that is not blank; "" at the end."""
        while True:
            self.at = _BLANK.match(self.held, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.held):
                return self.held[self.at]
            self.held, self.at = self.file.read(_CHARACTERS), 0
            if not self.held:
                return ""

    def skip(self, characters: int) -> None:
        """Pass over the next characters that are not blank."""
        self.mark()
        self.at += characters

    def value(self) -> Any:
        """Decode the next value."""
        self.mark()
        self.held = self.held[self.at :]
        while (found := self._decoded()) is None:
            self.held += self.file.read(max(len(self.held), _CHARACTERS))  # doubles what is held
        value, self.at = found
        self._tried = -1
        return value

    def _decoded(self) -> tuple[Any, int] | None:
        """Decode the value that the text begins with; None if there may be more of it to read."""
        held = len(self.held)
        try:
            return _JSON.raw_decode(self.held)
        except json.JSONDecodeError:
            if held == self._tried or held > 8 * LONGEST_TEXT:
                raise  # reading on brought nothing
            self._tried = held
            return None


def _csv_rows(path: Path, columns: list[str]) -> Rows:
    """Yield rows of a table with a header, fields quoted as in RFC 4180."""
    delimiter = "\t" if _format(path) == ".tsv" else ","
    parsing = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = _header(path, delimiter)
    for column in columns:
        if column not in names:
            raise missing_column(str(path), column, names)
        if names.count(column) > 1:
            count = names.count(column)
            raise UsageError(f"{path}: {count} columns are called {column!r}; rename them")
    converting = pyarrow.csv.ConvertOptions(
        include_columns=columns, column_types=dict.fromkeys(columns, pyarrow.string())
    )
    reading = pyarrow.csv.ReadOptions(block_size=8 * LONGEST_TEXT, use_threads=False)
    try:
        with opened(path) as file:
            stream = pyarrow.csv.open_csv(file, reading, parsing, converting)
            number = 0
            for batch in stream:
                for texts in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield f"row {number}", texts
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: not a table in UTF-8 ({one_line(error)})") from None


def _header(path: Path, delimiter: str) -> list[str]:
    """Read the names of a table's columns."""
    try:
        with opened(path) as file:
            start = file.read(1 << 20)
        if not start.strip():
            raise UsageError(f"{path}: the file is empty")
        table = pyarrow.csv.read_csv(
            io.BytesIO(start[: start.find(b"\n") + 1 or None] + b"\n"),
            read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=True),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={f"f{i}": pyarrow.string() for i in range(10_000)}
            ),
        )
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: not a table in UTF-8 ({one_line(error)})") from None
    return [str(name) for name in (next(iter(table.to_pylist()), {})).values()]


def _parquet_rows(path: Path, columns: list[str]) -> Rows:
    try:
        with path.open("rb") as opened_file, pyarrow.parquet.ParquetFile(opened_file) as file:
            schema = file.schema_arrow
            paths = [_path_of(column, schema) for column in columns]
            for column, path_of in zip(columns, paths, strict=True):
                _refuse_member(str(path), column, path_of, schema)
            number = 0
            for batch in file.iter_batches(_ROWS, columns=columns):
                texts = [_walk(batch, path_of) for path_of in paths]
                for row in range(batch.num_rows):
                    number += 1
                    try:
                        yield f"row {number}", tuple(column[row].as_py() for column in texts)
                    except UnicodeDecodeError:
                        raise UsageError(f"{path}: row {number} is not UTF-8") from None
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: not a Parquet file ({one_line(error)})") from None


def _path_of(column: str, schema: pyarrow.Schema) -> list[str]:
    return [column] if column in schema.names else column.split(".")


def _refuse_member(where: str, column: str, path: list[str], schema: pyarrow.Schema) -> None:
    """Refuse what ``refuse_column`` does, for members of structs too."""
    for depth, name in enumerate(path[:-1]):
        found = schema.get_all_field_indices(name)
        if len(found) != 1 or not pyarrow.types.is_struct(schema.field(found[0]).type):
            inside = f" (looking for {name!r})" if depth else ""
            raise missing_column(f"{where}{inside}", column, schema.names)
        schema = pyarrow.schema(list(schema.field(found[0]).type))
    if len(path) > 1 and path[-1] not in schema.names:
        raise missing_column(where, column, schema.names)
    refuse_column(where, path[-1], schema)


def _walk(batch: pyarrow.RecordBatch, path: list[str]) -> pyarrow.Array:
    column = batch.column(batch.schema.get_field_index(path[0]))
    return pyarrow.compute.struct_field(column, path[1:]) if len(path) > 1 else column


def _one_column(path: Path, columns: list[str], what: str) -> None:
    if len(columns) > 1:
        raise UsageError(f"{path}: {what} has no column {columns[1]!r} (--pair-column)")


_READERS: dict[str, Callable[[Path, list[str]], Rows]] = {
    **dict.fromkeys((".txt", ".text"), _text_rows),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _json_rows),
    **dict.fromkeys((".csv", ".tsv"), _csv_rows),
    ".parquet": _parquet_rows,
    **dict.fromkeys((".fasta", ".fa", ".faa", ".fna"), _fasta_rows),
}
