"""Text files and datasets to splits of rows, and every way in which they can be wrong."""

import json

import datasets
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from maskft.cli import UsageError
from maskft.cli.config import DataArguments
from maskft.cli.data import load_texts, row_length, split_of, tokenize
from tests.support.small import build_byte_level

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
    assert row_length(tokenizer, tiny_bert.config, None) == 64
    assert row_length(tokenizer, tiny_bert.config, 20) == 20
    with pytest.raises(UsageError, match="--max-length 65 is more than the model takes: 64"):
        row_length(tokenizer, tiny_bert.config, 65)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b"\n  \n", "the file is empty"),
        ("a.txt", b"good\nbad \xff here", r"line 2 is not UTF-8 \(byte 5 of the line is 0xff\)"),
        ("a.txt", b"a\0b", "line 1 has a NUL byte"),
        ("a.csv", b"text\nx", "expected a file that ends in .txt"),
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
        ("a.txt", b"one text", "the validation split is empty: there are 1 texts in all"),
    ],
)
def test_a_broken_file_is_one_sentence(write, name, content, text):
    arguments = DataArguments(train_file=[write(name, content)])
    arguments.pair_column = "pair" if "pair" in text else None
    with pytest.raises(UsageError, match=text) as error:
        load_texts(arguments)
    assert "\n" not in str(error.value)


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
