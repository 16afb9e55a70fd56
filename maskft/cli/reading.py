"""Read files into rows of text, and keep what was read.

A file is opened by its name as it is, never as a pattern. It is checked and read in one pass, and
what was read is kept in the cache folder of ``datasets`` under the file's path, size and time of
change, so that a later run finds it there, and with it the rows tokenized from it.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import datasets
import pyarrow
from datasets import Dataset

from maskft.cli.formats import (
    LONGEST_TEXT,
    Row,
    Rows,
    endings,
    one_line,
    readable,
    reader_of,
    too_long,
)
from maskft.cli.messages import UsageError

NAMES = ("text", "pair")
_VERSION = 2  # of what is kept: a change to what is read from the same file changes it
_BATCH, _BATCH_TEXT = 1000, 1 << 24  # rows and characters


def read(name: str, columns: list[str]) -> Dataset:
    """Read the rows of a file that have text in each of ``columns``: "text", and "pair" if two.

    A folder means all files in it, and in the folders below, whose names end as ``endings``
    lists, in the order of their names; hidden ones are left out. A text file or a FASTA file has
    one column, whatever ``columns`` calls it. In JSON the last of equal keys counts, and null is a
    row without text. The column "a.b" is the member b of the object or struct a.

    Raises:
        UsageError: the file cannot be read, or a column holds something other than text.
    """
    path = Path(name)
    try:
        about = path.stat()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise UsageError(f"{name}: {'no such file' if missing else one_line(error)}") from None
    if stat.S_ISDIR(about.st_mode):
        return datasets.concatenate_datasets([read(str(p), columns) for p in _inside(path)])
    reader = reader_of(path)
    if not stat.S_ISREG(about.st_mode):
        raise UsageError(f"{name}: not a regular file")
    times = (about.st_mtime_ns, about.st_ctime_ns)  # another file of this name has another ctime
    stamp = (_VERSION, str(path.resolve()), about.st_size, times, path.suffixes[-2:], columns)
    digest = blake2b(repr(stamp).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    kept = Path(datasets.config.HF_DATASETS_CACHE) / "maskft" / digest / "texts.arrow"
    with cache_errors():
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            rows = _readable(path, reader(path, columns))
            _write(kept, NAMES[: len(columns)], _batches(path, rows))
        return Dataset.from_file(str(kept))


def _inside(folder: Path) -> list[Path]:
    """List the files of a folder that are read, in the order of their names."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and readable(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]  # fmt: skip
    if not found:
        raise UsageError(f"{folder}: a folder without files that end in {endings()}")
    return found


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


def _batches(path: Path, rows: Rows) -> Iterator[list[Row]]:
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


def _readable(path: Path, rows: Rows) -> Rows:
    empty = True
    try:
        for row in rows:
            empty = False
            yield row
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or one_line(error)}") from None
    if empty:
        raise UsageError(f"{path}: the file is empty")
