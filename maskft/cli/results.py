"""Write results row by row, so that a killed run goes on where it was.

Results go to OUTPUT.part, a JSON object a line, first the settings of the run. A run that finds
such a file with its own settings drops what was not written whole and goes on after the rest. When
all rows are there, the file becomes OUTPUT: JSONL, CSV or Parquet by its name.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from maskft.cli.messages import UsageError, say

ENDINGS = (".jsonl", ".csv", ".parquet")
_ROWS = 1000  # converted at a time


class Results:
    """The results of a run in the file OUTPUT.

    Attributes:
        done: rows that an earlier run has written.

    Args:
        output: the name of the file, which must not exist.
        settings: what the results depend on, as JSON.
        at_once: rows come in parts of so many; what an earlier run wrote counts in whole parts.

    Raises:
        UsageError: the file is there, or another run's results are.
    """

    def __init__(self, output: str, settings: dict[str, Any], at_once: int) -> None:
        self.output, self.part = Path(output), Path(f"{output}.part")
        if self.output.suffix.lower() not in ENDINGS:
            raise UsageError(
                f"--output {output}: expected a file that ends in {', '.join(ENDINGS)}"
            )
        if self.output.exists():
            raise UsageError(f"--output {output}: there is such a file; remove it or name another")
        head = (json.dumps(settings, sort_keys=True) + "\n").encode()
        self.done = 0
        try:
            if self.part.exists():
                self._go_on(head, settings, at_once)
            else:
                self.part.write_bytes(head)
            self._file: IO[bytes] = self.part.open("ab", buffering=0)
        except OSError as error:
            raise UsageError(f"--output {output}: {error.strerror}") from None

    def _go_on(self, head: bytes, settings: dict[str, Any], at_once: int) -> None:
        """Cut the file after the last whole part."""
        with self.part.open("rb+") as file:
            first = file.readline()
            if not first.endswith(b"\n"):  # killed before anything was there
                file.seek(0)
                file.truncate()
                file.write(head)
                return
            if first != head:
                raise UsageError(
                    f"{self.part} holds results of other settings or another input "
                    f"({_difference(first, settings)}); remove it or give another --output"
                )
            whole, rows, end = file.tell(), 0, file.tell()
            for line in file:
                if not line.endswith(b"\n"):
                    break
                rows, end = rows + 1, end + len(line)
                if rows % at_once == 0:
                    self.done, whole = rows, end
            file.truncate(whole)
        if self.done:
            say(f"going on after {self.done:,} rows of {self.part}")

    def written(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that are there."""
        with self.part.open("rb") as file:
            for line in islice(file, 1, None):
                yield json.loads(line)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data = memoryview(text.encode("utf-8", "surrogatepass"))
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise UsageError(f"{self.part}: {error.strerror}; run again to go on") from None

    def finish(self) -> None:
        """Give the results their name and format."""
        os.fsync(self._file.fileno())
        self._file.close()
        made = Path(f"{self.output}.incomplete")
        {".jsonl": self._jsonl, ".csv": self._csv, ".parquet": self._parquet}[
            self.output.suffix.lower()
        ](made)
        made.replace(self.output)
        self.part.unlink()

    def _jsonl(self, made: Path) -> None:
        with self.part.open("rb") as source, made.open("wb") as file:
            file.writelines(islice(source, 1, None))

    def _csv(self, made: Path) -> None:
        rows = self.written()
        first = next(rows, None)
        with made.open("w", encoding="utf-8", newline="") as file:
            if first is None:
                return
            writer = csv.DictWriter(file, list(first))
            writer.writeheader()
            writer.writerow(_flat(first))
            writer.writerows(map(_flat, rows))

    def _parquet(self, made: Path) -> None:
        schema = pyarrow.unify_schemas(
            [table.schema for table in self._tables(None)] or [pyarrow.schema([])],
            promote_options="permissive",
        )
        with pyarrow.parquet.ParquetWriter(made, schema) as writer:
            for table in self._tables(schema):
                writer.write_table(table)

    def _tables(self, schema: pyarrow.Schema | None) -> Iterator[pyarrow.Table]:
        rows = self.written()
        while part := list(islice(rows, _ROWS)):
            yield pyarrow.Table.from_pylist(part, schema)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Write lists as JSON."""
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
        for key, value in row.items()
    }


def _difference(line: bytes, settings: dict[str, Any]) -> str:
    try:
        before = json.loads(line)
    except ValueError:
        return "it is not a file of results"
    if not isinstance(before, dict):
        return "it is not a file of results"
    names = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
    return ", ".join(f"{k}: {before.get(k)!r}, now {settings.get(k)!r}" for k in names)
