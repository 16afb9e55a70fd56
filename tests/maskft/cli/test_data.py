"""Text files and datasets to splits of rows, and every way in which they can be wrong."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from maskft.cli import UsageError
from maskft.cli.config import DataArguments
from maskft.cli.data import LONGEST_TEXT, load_texts, row_length, split_of, tokenize
from tests.support.small import build_byte_level
from tests.support.tiny import KINDS, VOCABULARY, tiny_model

TEXTS = [f"text number {i}" for i in range(400)]


@pytest.fixture
def write(tmp_path):
    def writer(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return writer


def texts_of(splits):
    return {name: list(split["text"]) for name, split in splits.items()}


def test_every_format_gives_the_same_splits(write, tmp_path):
    table = Dataset.from_dict({"body": TEXTS, "other": range(len(TEXTS))})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "folder")
    lines = "\n".join(json.dumps({"body": t, "other": 1}) for t in TEXTS)
    options = {"text_column": "body", "test_fraction": 0.2, "validation_fraction": 0.1}
    given = [
        DataArguments(train_file=[write("a.txt", "\n".join(TEXTS) + "\n\n  \n")], **options),
        DataArguments(train_file=[write("a.jsonl", lines)], **options),
        DataArguments(train_file=[str(tmp_path / "a.parquet")], **options),
        DataArguments(dataset=str(tmp_path / "folder"), **options),
    ]
    found = [texts_of(load_texts(arguments)) for arguments in given]
    assert found[0] == found[1] == found[2] == found[3]
    assert sorted(t for part in found[0].values() for t in part) == sorted(TEXTS)
    assert 50 < len(found[0]["test"]) < 110
    assert 20 < len(found[0]["validation"]) < 60


def test_the_split_of_a_text_depends_on_the_text_alone(write):
    few = write("few.txt", "\n".join(reversed(TEXTS[:200] * 2)))
    options = {"test_fraction": 0.3, "validation_fraction": 0.3}
    found = texts_of(load_texts(DataArguments(train_file=[few], **options)))
    for name, texts in found.items():
        assert {split_of(t, 0.3, 0.3) for t in texts} == {name}
    assert not set(found["train"]) & set(found["test"])


def test_no_fraction_means_no_split(write):
    path = write("a.txt", "\n".join(TEXTS))
    found = load_texts(DataArguments(train_file=[path], test_fraction=0, validation_fraction=0))
    assert list(found) == ["train"]
    assert len(found["train"]) == len(TEXTS)


def test_several_files_are_read_one_after_the_other(write):
    files = [write("a.txt", "one"), write("b.jsonl", '{"text": "two"}')]
    found = load_texts(DataArguments(train_file=files, test_fraction=0, validation_fraction=0))
    assert list(found["train"]["text"]) == ["one", "two"]


def test_the_splits_of_a_dataset_are_kept(tmp_path):
    given = {name: Dataset.from_dict({"text": [name] * 5}) for name in ("train", "dev")}
    given["train"] = Dataset.from_dict({"text": TEXTS})
    DatasetDict(given).save_to_disk(tmp_path / "d")
    found = texts_of(load_texts(DataArguments(dataset=str(tmp_path / "d"), test_fraction=0.2)))
    assert found["validation"] == ["dev"] * 5
    assert set(found["train"]) | set(found["test"]) == set(TEXTS)
    DatasetDict(test=given["dev"]).save_to_disk(tmp_path / "e")
    with pytest.raises(UsageError, match=r"no train split; it has \['test'\]"):
        load_texts(DataArguments(dataset=str(tmp_path / "e")))


def test_a_long_text_goes_on_in_rows_of_its_own(tokenizer):
    text = " ".join(["mask"] * 50)
    rows = tokenize(Dataset.from_dict({"text": [text, "a mask"]}), tokenizer, 12)
    assert [len(ids) for ids in rows["input_ids"]] == [12] * 5 + [4]
    ordinary = [t for ids in rows["input_ids"][:5] for t in ids if t not in (2, 3)]
    assert ordinary == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert set(rows.column_names) == {"input_ids", "token_type_ids", "attention_mask"}


def test_a_stride_repeats_the_end_of_the_row_before(tokenizer):
    text = " ".join(["mask"] * 50)
    rows = tokenize(Dataset.from_dict({"text": [text, "a mask"]}), tokenizer, 12, stride=4)
    inside = [[t for t in ids if t not in (2, 3)] for ids in rows["input_ids"]]
    ordinary = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert inside[0] == ordinary[:10]
    assert inside[1] == ordinary[6:16]
    assert inside[-2] == ordinary[6 * (len(inside) - 2) :]
    assert inside[-1] == tokenizer("a mask", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("stride", [-1, 10, 12, 10**30])
def test_a_stride_that_no_row_can_keep_is_refused(tokenizer, stride):
    with pytest.raises(UsageError, match=rf"--stride must be in \[0, 10\).*got {stride}"):
        tokenize(Dataset.from_dict({"text": ["a mask"]}), tokenizer, 12, stride=stride)


def test_a_stride_is_not_for_pairs(tokenizer):
    with pytest.raises(UsageError, match="--stride 4 is not for pairs of texts"):
        tokenize(Dataset.from_dict({"text": ["a"], "pair": ["b"]}), tokenizer, 12, stride=4)


def test_processes_that_tokenize_do_not_change_the_rows(tokenizer):
    texts = Dataset.from_dict({"text": TEXTS})
    assert (
        tokenize(texts, tokenizer, 12, processes=2).to_list()
        == tokenize(texts, tokenizer, 12).to_list()
    )


@pytest.mark.parametrize("pair", [False, True])
def test_few_characters_are_tokenized_at_once(tokenizer, monkeypatch, pair):
    """A thousand texts of 20 kB would take 3.4 GB; the rows are the same."""
    texts = {"text": [f"text {n} " * n for n in range(1, 40)]}
    if pair:
        texts["pair"] = texts["text"][::-1]
    whole = tokenize(Dataset.from_dict(texts), tokenizer, 32).to_dict()
    sizes = []
    monkeypatch.setattr("maskft.cli.data.AT_ONCE", 500)
    original = type(tokenizer).__call__

    def call(self, texts, pairs=None, **options):
        sizes.append(sum(map(len, [*texts, *(pairs or [])])))
        return original(self, texts, pairs, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", call)
    assert tokenize(Dataset.from_dict(texts), tokenizer, 32).to_dict() == whole
    assert len(sizes) > 5
    assert max(sizes) <= 500
    assert sum(sizes) == sum(len(text) for column in texts.values() for text in column)


PAIRS = {
    "question": ["who jumps", "what is masked", " ", "what is hidden"],
    "context": ["the quick brown fox jumps over the lazy dog", "whole words", "a mask", ""],
}


def test_a_second_column_makes_pairs(write, tmp_path):
    table = Dataset.from_dict(PAIRS | {"id": range(4)})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "d")
    rows = "\n".join(json.dumps(row) for row in table.to_list())
    options = {
        "text_column": "question", "pair_column": "context", "test_fraction": 0.0,
        "validation_fraction": 0.0,
    }  # fmt: skip
    for arguments in (
        DataArguments(train_file=[write("a.jsonl", rows)], **options),
        DataArguments(train_file=[str(tmp_path / "a.parquet")], **options),
        DataArguments(dataset=str(tmp_path / "d"), **options),
    ):
        found = load_texts(arguments)["train"].to_dict()  # those with both texts
        assert found == {"text": PAIRS["question"][:2], "pair": PAIRS["context"][:2]}


def test_rows_without_text_are_left_out(tmp_path):
    Dataset.from_dict({"text": ["one", None, "", " \n"]}).to_parquet(tmp_path / "a.parquet")
    arguments = DataArguments(train_file=[str(tmp_path / "a.parquet")], test_fraction=0)
    arguments.validation_fraction = 0.0
    assert list(load_texts(arguments)["train"]["text"]) == ["one"]


@pytest.mark.parametrize("build", ["wordpiece", "byte_level"])
def test_a_pair_is_tokenized_as_one_and_mask_only_names_a_side(tokenizer, build):
    """RoBERTa's tokenizers have no token types; the column says which text a token is of."""
    tokenizer = tokenizer if build == "wordpiece" else build_byte_level()
    texts = Dataset.from_dict({"text": PAIRS["question"][:2], "pair": PAIRS["context"][:2]})
    for mask_only in ((0,), (1,), (0, 1)):
        rows = tokenize(texts, tokenizer, 128, mask_only=mask_only).to_list()
        for row, text, pair in zip(rows, texts["text"], texts["pair"], strict=True):
            assert row["input_ids"] == tokenizer(text, pair)["input_ids"]
            chosen = [i for i, w in zip(row["input_ids"], row["mask_only"], strict=True) if w]
            parts = [(text, pair)[side] for side in mask_only]
            assert chosen == [
                i for part in parts for i in tokenizer(part, add_special_tokens=False)["input_ids"]
            ]
        if mask_only == (1,) and "token_type_ids" in rows[0]:
            special = set(tokenizer.all_special_ids)
            for row in rows:
                ordinary = [i not in special for i in row["input_ids"]]
                types = [t and o for t, o in zip(row["token_type_ids"], ordinary, strict=True)]
                assert row["mask_only"] == types


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(7, 16))
def test_the_parts_of_a_long_pair_go_side_by_side(first, second, length):
    """Every token of both is in a row; a part is repeated only where the other text goes on."""
    tokenizer = build_byte_level()
    text, pair = ("abcdefghijklmnopqrstuvwxyz0123456789"[:n] for n in (first, second))
    texts = Dataset.from_dict({"text": [text], "pair": [pair]})
    datasets.disable_progress_bars()
    rows = tokenize(texts, tokenizer, length, mask_only=(1,)).to_list()
    special = tokenizer.num_special_tokens_to_add(pair=True)
    sides = [[], []]
    for row in rows:
        assert len(row["input_ids"]) <= length
        for side in (0, 1):
            part = [
                i
                for i, w in zip(row["input_ids"], row["mask_only"], strict=True)
                if w == side and i not in tokenizer.all_special_ids
            ]
            sides[side].append(tokenizer.decode(part))
    for whole, parts in zip((text, pair), sides, strict=True):
        distinct = list(dict.fromkeys(parts))
        assert "".join(distinct) == whole
        assert parts == distinct + distinct[-1:] * (len(parts) - len(distinct))
    assert len(rows) == max(len(set(side)) for side in sides)
    if first + second + special <= length:
        assert len(rows) == 1


def test_a_pair_of_long_texts_is_encoded_once(monkeypatch):
    """Not every part of one beside every part of the other: 100 x 200 rows to take 200 of."""
    tokenizer = build_byte_level()
    monkeypatch.setattr(datasets.Dataset, "map", _in_process)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    texts = Dataset.from_dict({"text": ["ab" * 100], "pair": ["cd" * 200]})
    encoded = []
    kept = tokenizer._encode_plus
    monkeypatch.setattr(
        tokenizer, "_encode_plus", lambda *a, **k: encoded.append(kept(*a, **k)) or encoded[-1]
    )
    rows = tokenize(texts, tokenizer, special + 4)
    assert len(encoded) == 1
    assert len(encoded[0]["input_ids"]) == 1
    assert len(rows["input_ids"]) == -(-len(tokenizer.tokenize("cd" * 200)) // 2)


def _in_process(texts, function, **_):
    return function(texts[:])


def test_a_row_too_short_for_a_pair_is_refused(tokenizer):
    texts = Dataset.from_dict({"text": ["a"], "pair": ["b"]})
    assert len(tokenize(texts, tokenizer, 5)) == 1
    with pytest.raises(UsageError, match="--max-length 4 leaves no room for a pair of texts"):
        tokenize(texts, tokenizer, 4)


def test_row_length_stays_within_the_model(tokenizer, tiny_bert):
    assert row_length(tokenizer, tiny_bert, None) == 64
    assert row_length(tokenizer, tiny_bert, 20) == 20
    with pytest.raises(UsageError, match="--max-length 65 is more than the model takes: 64"):
        row_length(tokenizer, tiny_bert, 65)


@pytest.mark.parametrize("model_type", KINDS["masked"])
def test_rows_are_as_long_as_every_family_takes(tokenizer, model_type):
    """RoBERTa's family takes fewer tokens than it has positions; one more would be an error."""
    model = tiny_model("masked", model_type).eval()
    if model_type == "reformer":  # the tiny one's positions are 4 x 4, whatever its maximum says
        model.config.max_position_embeddings = 16
    longest = row_length(tokenizer, model, None)
    taken = [n for n in (longest, longest + 1) if _takes(model, n)]
    unbounded = model_type in ROTARY or longest == 512
    assert taken == [longest, longest + 1][: 2 if unbounded else 1]


# They compute their positions, and 64 is what they were trained on; tapas starts over in each cell
ROTARY = (
    "esmc", "eurobert", "gte", "jina_embeddings_v3", "modernbert", "modernvbert", "neomme",
    "nomic_bert", "tapas", "ultrabert", "ultravbert",
)  # fmt: skip


def _takes(model, length):
    ids = torch.randint(6, VOCABULARY, (1, length))
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b"\n  \n", "the file is empty"),
        ("a.txt", b"good\nbad \xff here", r"line 2 is not UTF-8 \(byte 5 of the line is 0xff\)"),
        ("a.txt", b"a\0b", "line 1 has a NUL byte"),
        ("a.docx", b"text\nx", "expected a file that ends in .txt"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2 is not JSON"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "y"}',
            r"line 2: no column 'text'; there are \['body'",
        ),
        ("a.jsonl", b'{"text": 3}', "line 1: 'text' holds int, not text"),
        ("a.jsonl", b"[1]", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1 is not UTF-8"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.parquet", b"PAR1 not really", "not a Parquet file"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.jsonl", b'{"text": "x", "pair": 3}', "line 1: 'pair' holds int, not text"),
        ("a.jsonl", b'{"text": "x"}', "line 1: no column 'pair'; .*--pair-column name them"),
        ("a.txt", b"text\n", r"a text file has no column 'pair' \(--pair-column\)"),
        (
            "a.jsonl",
            rb'{"text": "a \ud83d"}',
            r"line 1: 'text' has half a surrogate pair \(\\ud83d",
        ),
        (
            "a.jsonl",
            b'{"text": "a", "u": ' + b"[" * 99999,
            "line 1 is JSON that is nested too deep",
        ),
        ("a.txt", b"\0" * (LONGEST_TEXT + 9), "line 1 has a NUL byte"),
        ("a.txt", b"a " * LONGEST_TEXT, "line 1 is longer than 8,388,608 bytes"),
        (
            "a.jsonl",
            b'{"text": "' + b"a" * LONGEST_TEXT + b'b"}',
            "line 1: a text of 8,388,609 char",
        ),
        ("a.jsonl", b" " * 8 * LONGEST_TEXT + b"{}", "line 1 is longer than 67,108,864 bytes"),
        ("a.txt", b">sp|P1|A\nMKVLA\nGG*\n>sp|P2\nMKK\n", "this is FASTA, and its headers .*P1"),
        ("a.txt", b"@read1\nACGTN\n+\n>IIII\n", "this is FASTQ, and its headers .*read1"),
        ("a.txt", b"EU NNP B-ORG\nsays VBZ O\n\nNo DT O\n", "this is CoNLL, a token a line"),
        ("a.txt", b"-DOCSTART- -X- O\n\nEU B-ORG\n", "this is CoNLL, a token a line"),
        ("a.txt", b"# id = 1\n" + b"1\tx" + b"\t_" * 8 + b"\n2\ty" + b"\t_" * 8, "this is CoNLL"),
        ("a.txt", b"one text", "the validation split is empty: there are 1 texts in all"),
    ],
)
def test_a_broken_file_is_one_sentence(write, name, content, text):
    arguments = DataArguments(train_file=[write(name, content)])
    arguments.pair_column = "pair" if "pair" in text else None
    with pytest.raises(UsageError, match=text) as error:
        load_texts(arguments)
    assert "\n" not in str(error.value)


def split_of_one(*files, **options):
    """The rows of ``files``, without held-out splits."""
    options = {"test_fraction": 0.0, "validation_fraction": 0.0} | options
    return load_texts(DataArguments(train_file=list(files), **options))["train"].to_dict()


LONG = "x" * 1000


@pytest.mark.parametrize(
    "last",
    ['{"text": "n", "u": "", "more": 1}', '{"text": "n", "u": 5}', '{"text": "n", "u": null}'],
    ids=["a_key_more", "text_then_int", "text_then_null"],
)
def test_columns_that_nobody_needs_may_change(write, last):
    """In the middle of a file of 11 MB, where Arrow's reader begins a new block."""
    lines = [json.dumps({"text": f"n {i}", "u": LONG}) for i in range(11_000)]
    found = split_of_one(write("a.jsonl", "\n".join([*lines, last])))
    assert found["text"] == [*(f"n {i}" for i in range(11_000)), "n"]


@pytest.mark.parametrize(
    "value",
    [r'"\ud83d"', '1, "u": 2', "[" * 600 + "]" * 600, "1e999", "9" * 5000, "NaN"],
    ids=["half_a_surrogate", "a_key_twice", "nested", "infinite", "long_integer", "nan"],
)
def test_json_that_nobody_needs_is_not_read(write, value):
    path = write("a.jsonl", '{"u": ' + value + ', "text": "a"}')
    assert split_of_one(path) == {"text": ["a"]}


def test_text_that_looks_like_a_date_is_text(write):
    texts = ["2020-01-01 00:00:00", "2020-01-02T00:00:00Z"]
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    assert split_of_one(write("a.jsonl", lines))["text"] == texts


def test_null_is_a_row_without_text_in_every_format(write, tmp_path):
    table = Dataset.from_dict({"text": [None, "x"]})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "d")
    jsonl = write("a.jsonl", '{"text": null}\n{"text": "x"}')
    for files, options in (
        ([jsonl], {}), ([str(tmp_path / "a.parquet")], {}), ([], {"dataset": str(tmp_path / "d")}),
    ):  # fmt: skip
        assert split_of_one(*files, **options) == {"text": ["x"]}


def test_a_byte_order_mark_is_not_text(write):
    assert split_of_one(write("a.txt", "\ufeffa\nb\r\nc\rd")) == {"text": ["a", "b", "c", "d"]}


def test_text_that_looks_nearly_like_another_format_is_text(write):
    for n, lines in enumerate(
        ([">quoted", "he said so"], ["vitamin B-12", "grade O or A"], ["@you", "yes", "+1", "no"])
    ):
        assert split_of_one(write(f"{n}.txt", "\n".join(lines)))["text"] == lines


STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_every_kind_of_string_in_parquet_is_text(write, tmp_path, kind):
    """pandas 3 writes large_string; and columns of other types are not looked at."""
    columns = {
        "t.x": pa.array(["one", None]).cast(kind),
        "t": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        "views": pa.array([[1], None], pa.list_view(pa.int64())),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    files = [str(tmp_path / "a.parquet"), write("b.txt", "two"), write("c.jsonl", '{"t.x": "3"}')]
    assert split_of_one(*files, text_column="t.x") == {"text": ["one", "two", "3"]}


LISTS = pa.array([["a"]])
BAD_PARQUET = {
    "a_list": (pa.table({"text": LISTS}), "column 'text' holds list<.*>, not text"),
    "a_struct": (pa.table({"text": [{"q": "a"}]}), "column 'text' holds struct<.*>, not text"),
    "twice": (
        pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
        "2 columns are called 'text'; rename them",
    ),
    "not_utf8": (
        pa.table({"text": pa.array([b"a", b"\xff"]).view(pa.string())}),
        "a.parquet: row 2 is not UTF-8",
    ),
}


@pytest.mark.parametrize(("table", "text"), BAD_PARQUET.values(), ids=BAD_PARQUET)
def test_a_column_that_is_not_text_is_one_sentence(tmp_path, table, text):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=text):
        split_of_one(str(tmp_path / "a.parquet"))
    if "list" in text or "struct" in text:
        Dataset(table).save_to_disk(tmp_path / "d")
        with pytest.raises(UsageError, match=text):
            split_of_one(dataset=str(tmp_path / "d"))


def test_a_corrupt_page_of_parquet_is_one_sentence(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{i} word {i * 7919}" for i in range(20_000)]}), path)
    broken = bytearray(path.read_bytes())
    broken[2000:2400] = b"\xff" * 400
    path.write_bytes(broken)
    with pytest.raises(UsageError, match=r"a.parquet: .*[Cc]orrupt"):
        split_of_one(str(path))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("notes[1].txt", "notes1.txt"), ("a*.txt", "a-secret.txt"), ("run[3]/x.txt", "run3/x.txt"),
        ("c::d.txt", "d.txt"), ("{a,b}.txt", "a.txt"), ("a?.txt", "ab.txt"), ("~/a.txt", "b.txt"),
        ("**/a.txt", "x/a.txt"), ("file:a.txt", "a.txt"), ("[1].jsonl", "1.jsonl"),
        ("[1].parquet", "1.parquet"),
    ],
)  # fmt: skip
def test_a_file_name_is_no_pattern(tmp_path, name, other):
    """What was checked is what is read."""
    for file, text in ((name, "mine"), (other, "somebody else's")):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        if file.endswith(".parquet"):
            Dataset.from_dict({"text": [text]}).to_parquet((tmp_path / file).open("wb"))
        else:
            content = json.dumps({"text": text}) if file.endswith(".jsonl") else text
            (tmp_path / file).write_text(content)
    assert split_of_one(str(tmp_path / name)) == {"text": ["mine"]}


@pytest.mark.parametrize("name", ["d[1]", "d*", "d?", "{d,e}"])
def test_a_folder_name_is_no_pattern(tmp_path, name):
    for folder, text in ((name, "mine"), ("d1", "somebody else's"), ("d", "another's")):
        Dataset.from_dict({"text": [text]}).save_to_disk(tmp_path / folder)
    assert split_of_one(dataset=str(tmp_path / name)) == {"text": ["mine"]}


def test_a_chain_of_folders_is_refused(tmp_path):
    with pytest.raises(UsageError, match="takes '::' in a folder's name for a chain"):
        load_texts(DataArguments(dataset=str(tmp_path / "c::d")))


def test_a_file_is_read_once_until_it_changes(write, monkeypatch):
    path = write("a.txt", "one")
    assert split_of_one(path) == {"text": ["one"]}
    with monkeypatch.context() as patch:
        patch.setattr("maskft.cli.reading.reader_of", lambda path: {}.__getitem__)
        with pytest.raises(TypeError):
            split_of_one(write("b.txt", "never read"))
        assert split_of_one(path) == {"text": ["one"]}
    write("a.txt", "two")
    assert split_of_one(path) == {"text": ["two"]}


def test_a_cache_that_cannot_be_written_is_one_sentence(write, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "a.txt" / "cache")
    with pytest.raises(UsageError, match=r"cannot write to the cache .*cache.*: Not a directory"):
        split_of_one(write("a.txt", "one"))


def test_what_was_not_read_to_its_end_is_not_kept(write, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write("a.txt", b"good\n" * 3000 + b"bad \xff\n")
    for _ in range(2):
        with pytest.raises(UsageError, match="line 3001 is not UTF-8"):
            split_of_one(path)
    assert not [found for found in (tmp_path / "cache").rglob("*") if found.is_file()]


def test_a_dataset_without_rows_is_one_sentence(tmp_path):
    features = Features({"text": Value("string")})
    Dataset.from_dict({"text": []}, features=features).save_to_disk(tmp_path / "none")
    with pytest.raises(UsageError, match="none: the dataset is empty"):
        load_texts(DataArguments(dataset=str(tmp_path / "none")))


def test_a_missing_column_lists_those_there_are(tmp_path):
    table = Dataset.from_dict({"body": ["x"], "id": [1]})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "d")
    for arguments in (
        DataArguments(train_file=[str(tmp_path / "a.parquet")]),
        DataArguments(dataset=str(tmp_path / "d")),
    ):
        with pytest.raises(UsageError, match=r"no column 'text'; there are \['body', 'id'\]"):
            load_texts(arguments)
    with pytest.raises(UsageError, match="column 'id' holds int64, not text"):
        load_texts(DataArguments(dataset=str(tmp_path / "d"), text_column="id"))


def test_files_and_folders_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load_texts(DataArguments(train_file=[str(tmp_path / "no.txt")]))
    with pytest.raises(UsageError, match="--dataset"):
        load_texts(DataArguments(dataset=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "one of the two"),
        ({"train_file": ["a"], "dataset": "b"}, "one of the two"),
        ({"train_file": ["a"], "test_fraction": 1.0}, r"--test-fraction must be in \[0, 1\)"),
        ({"train_file": ["a"], "test_fraction": float("nan")}, "--test-fraction must be in"),
        (
            {"train_file": ["a"], "test_fraction": 0.6, "validation_fraction": 0.5},
            "nothing to train",
        ),
        ({"train_file": ["a"], "max_length": 2}, "--max-length must be at least 3"),
        ({"train_file": ["a"], "pair_column": "text"}, "--pair-column are both 'text'"),
    ],
)
def test_bad_options_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        DataArguments(**options).check()
