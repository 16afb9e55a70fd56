"""Every format of text files gives the texts that are in it, and says what is wrong with it."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from maskft.cli import UsageError
from maskft.cli.config import DataArguments
from maskft.cli.data import load_texts
from maskft.cli.formats import LONGEST_TEXT

TEXTS = [
    "plain words", 'with "quotes", commas', "naïve 北京 🙂", "NA", "null", "1.50", "2020-01-02",
    "tab\tinside", "two\nlines", " spaces around ", "#hash", "'", "[1]",
]  # fmt: skip
PAIRS = [text[::-1] for text in TEXTS]
PROTEINS = ["MKVLAGG*", "MKK", "A" * 500]
FASTA = f">sp|P1|A first\nMKVLA\nGG*\n\n;remark\n>P2\nMKK\n>P3\n{'A' * 250}\n{'A' * 250}\n"


def table(delimiter):
    """The texts as Python's own writer quotes them."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["number", "text", "pair"])
    writer.writerows(zip(range(len(TEXTS)), TEXTS, PAIRS, strict=True))
    return out.getvalue()


def records():
    rows = zip(TEXTS, PAIRS, strict=True)
    return [{"x": [{}], "text": text, "pair": pair, "y": {"text": 1}} for text, pair in rows]


FILES = {
    "a.csv": table(","),
    "a.tsv": table("\t"),
    "a.jsonl": "\n".join(map(json.dumps, records())),
    "a.ndjson": "\n\n".join(json.dumps(row, ensure_ascii=False) for row in records()),
    "a.json": json.dumps(records()),
    "lines.json": "\n".join(map(json.dumps, records())),
    "indented.json": "\ufeff \n" + json.dumps(records(), indent=4, ensure_ascii=False),
}


def read(*files, **options):
    options = {"validation_fraction": 0.0, "test_fraction": 0.0} | options
    return load_texts(DataArguments(train_file=[str(file) for file in files], **options))["train"]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_its_texts(tmp_path, name, packed):
    content = FILES[name].encode()
    path = tmp_path / f"{name}.gz" if packed else tmp_path / name
    path.write_bytes(gzip.compress(content) if packed else content)
    found = read(path, pair_column="pair")
    assert list(found["text"]) == TEXTS
    assert list(found["pair"]) == PAIRS


@pytest.mark.parametrize("name", ["a.fasta", "a.FA", "a.faa", "a.fna.gz"])
def test_a_sequence_of_fasta_is_a_text(tmp_path, name):
    content = FASTA.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert list(read(path)["text"]) == PROTEINS


def test_the_elements_of_an_array_may_be_longer_than_what_is_read_at_once(tmp_path):
    rows = [{"text": chr(97 + n % 26) * (1 << n), "n": n} for n in range(20)] * 2
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    assert list(read(tmp_path / "a.json")["text"]) == [row["text"] for row in rows]


def test_a_folder_means_the_files_in_it_by_name(tmp_path):
    folder = tmp_path / "data"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "c.txt").write_text("third\nfourth")
    (folder / "b" / "x.jsonl").write_text('{"text": "second"}')
    (folder / "a.csv.gz").write_bytes(gzip.compress(b"text\nfirst\n"))
    for name in ("README.md", ".d.txt", ".hidden/e.txt"):
        (folder / name).write_text("not this")
    assert list(read(folder)["text"]) == ["first", "second", "third", "fourth"]


def test_a_dotted_name_is_a_member(tmp_path):
    rows = [{"a": {"b": {"c": text}}, "d": 1} for text in ("one", "two")] + [{"a": None}]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "n.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "n.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("n.jsonl", "n.json", "n.parquet"):
        assert list(read(tmp_path / name, text_column="a.b.c")["text"]) == ["one", "two"], name
    found = load_texts(
        DataArguments(
            dataset=str(tmp_path / "saved"), text_column="a.b.c",
            validation_fraction=0.0, test_fraction=0.0,
        )
    )["train"]  # fmt: skip
    assert list(found["text"]) == ["one", "two"]


def test_a_column_whose_name_has_a_dot_comes_first(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a.b": "this", "a": {"b": "that"}}')
    assert list(read(tmp_path / "a.jsonl", text_column="a.b")["text"]) == ["this"]


WHOLE = gzip.compress(b"some text\n" * 1000)
WRONG = {
    "gzip cut": ("a.txt.gz", WHOLE[:-20], "not a whole gzip file"),
    "gzip that is none": ("a.jsonl.gz", b'{"text": "x"}', "not a whole gzip file"),
    "gzip of Parquet": ("a.parquet.gz", WHOLE, "expected a file that ends in"),
    "gzip of nothing known": ("a.gz", WHOLE, "expected a file that ends in"),
    "empty table": ("a.csv", b"", "empty"),
    "header only": ("a.csv", b"text,other\n", "the file is empty"),
    "no such column": ("a.csv", b"body,other\nx,y\n", r"no column 'text'; there are \['body'"),
    "a column twice": ("a.tsv", b"text\ttext\nx\ty\n", "2 columns are called 'text'"),
    "ragged": ("a.csv", b"text,other\nx,y\nx,y,z\n", "Expected 2 columns, got 3"),
    "not UTF-8": ("a.csv", b"text\ncaf\xe9\n", "not a table in UTF-8"),
    "header not UTF-8": ("a.csv", b"caf\xe9,text\nx,y\n", "not a table in UTF-8"),
    "a field too long": ("a.csv", b"text\n" + b"x" * (LONGEST_TEXT + 1) + b"\n", "at most 8,388"),
    "array without end": ("a.json", b'[{"text": "x"},', "item 2 is not JSON"),
    "array without a comma": ("a.json", b'[{"text": "x"} {"text": "y"}]', "expected , or ] after"),
    "array without its bracket": ("a.json", b'[{"text": "x"} ', "item 1, but the file ends"),
    "array with two commas": ("a.json", b'[{"text": "x"},,]', "item 2 is not JSON"),
    "array cut": ("a.json", b'[{"text": "x"}, {"text": "y', "item 2 is not JSON"),
    "array of texts": ("a.json", b'["x", "y"]', "item 1 is not a JSON object"),
    "array of numbers": ("a.json", b"[1]", "item 1 is not a JSON object"),
    "array, wrong column": ("a.json", b'[{"txt": "x"}]', "item 1: no column 'text'"),
    "array, not UTF-8": ("a.json", b'[{"text": "x"}, {"text": "\xe9"}]', "not UTF-8"),
    "array, deep": ("a.json", b"[" * 100_000, "nested too deeply"),
    "empty array": ("a.json", b" [] ", "the file is empty"),
    "an object over lines": ("a.json", b'{\n"text": "x"\n}', "line 1 is not JSON"),
    "no header": ("a.fa", b"MKV\n>P1\nMK\n", "line 1 is before the first header"),
    "empty FASTA": ("a.fa", b"\n\n", "the file is empty"),
    "a chromosome": ("a.fa", b">chr1\n" + (b"A" * 6_000_000 + b"\n") * 2, "record 1, line 1: a te"),
    "member of text": ("a.jsonl", b'{"text": "x", "a": "y"}', "no column 'a.b'"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_sentence(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    column = "a.b" if "a.b" in said else "text"
    with pytest.raises(UsageError, match=said) as raised:
        read(path, text_column=column)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize("kind", ["a.txt", "a.fasta"])
def test_a_format_of_one_column_has_no_pairs(tmp_path, kind):
    (tmp_path / kind).write_text(FASTA if kind == "a.fasta" else "text")
    with pytest.raises(UsageError, match="has no column 'pair'"):
        read(tmp_path / kind, pair_column="pair")


def test_a_folder_without_text_is_one_sentence(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.pdf").write_text("x")
    with pytest.raises(UsageError, match="a folder without files that end in"):
        read(tmp_path / "data")


@pytest.mark.parametrize(
    ("column", "said"),
    [("a.x", "no column 'a.x'"), ("a.b.c", "no column 'a.b.c'"), ("a", "holds struct")],
)
def test_a_member_that_parquet_lacks_is_one_sentence(tmp_path, column, said):
    pq.write_table(pa.Table.from_pylist([{"a": {"b": "x"}}]), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=said):
        read(tmp_path / "a.parquet", text_column=column)
