"""``pad_batch`` against ``tokenizer.pad``, and the collator on every form of dataset."""

import datasets
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import PreTrainedTokenizerFast

from maskft import DataCollatorForLanguageModeling
from maskkernels import pad_batch
from tests.support.small import CORPUS, build_wordpiece

TOKENIZER = build_wordpiece()
FORMS = {
    "lists": lambda row: row,
    "numpy": np.array,
    "int32": lambda row: np.array(row, np.int32),
    "tensors": torch.tensor,
}


def values(tokenizer):
    return {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "special_tokens_mask": 1,
        "attention_mask": 0,
    }


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=9), min_size=1, max_size=5),
    st.permutations(["input_ids", "token_type_ids", "special_tokens_mask", "attention_mask"]),
    st.integers(0, 3),
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(["left", "right"]),
    st.sampled_from([None, 1, 4, 8]),
)
def test_keys_and_values_are_those_of_the_tokenizer(rows, names, dropped, form, side, multiple):
    names = [name for name in names if name not in ("attention_mask", "token_type_ids")[:dropped]]
    examples = [
        {name: FORMS[form]([(i + k) % 7 for i in row]) for k, name in enumerate(names)}
        for row in rows
    ]
    expected = TOKENIZER.pad(
        examples, padding_side=side, pad_to_multiple_of=multiple, return_tensors="pt"
    )
    found = pad_batch(
        examples, padding_values=values(TOKENIZER), padding_side=side, pad_to_multiple_of=multiple
    )
    assert list(found) == list(expected)
    for name in found:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name])


@pytest.fixture
def dataset(tokenizer):
    return datasets.Dataset.from_dict(dict(tokenizer(CORPUS)))


@pytest.mark.parametrize("strategy", ["random", "whole_word"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_format_of_a_dataset_gives_the_same_batch(tokenizer, dataset, strategy, side):
    tokenizer.padding_side = side
    collator = DataCollatorForLanguageModeling(
        tokenizer, rng="sample", strategy=strategy, pad_to_multiple_of=8
    )
    expected = collator(list(dataset))
    assert (expected["labels"] != -100).any()
    whole = range(len(dataset))
    batches = {
        "a slice": dataset[:],
        "numpy": list(dataset.with_format("numpy")),
        "torch": list(dataset.with_format("torch")),
        "pandas": dataset.with_format("pandas").__getitems__(list(whole)),
        "arrow": dataset.with_format("arrow")[:],
        "arrow, chosen": dataset.with_format("arrow")[list(whole)],
        "arrow, one by one": list(dataset.with_format("arrow")),
        "arrow, record batch": dataset.with_format("arrow")[:].combine_chunks().to_batches()[0],
        "pandas, a slice": dataset.with_format("pandas")[:],
        "pandas, one by one": list(dataset.with_format("pandas")),
        "columns": {name: dataset[name] for name in dataset.column_names},
    }
    for name, batch in batches.items():
        found = collator(batch)
        assert list(found) == list(expected), name
        for key in expected:
            assert found[key].dtype == expected[key].dtype, (name, key)
            assert torch.equal(found[key], expected[key]), (name, key)


def test_a_loader_hands_over_whole_arrow_tables(tokenizer, dataset):
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample")
    rows = DataLoader(dataset, batch_size=7, collate_fn=collator)
    tables = DataLoader(
        dataset.with_format("arrow"),
        sampler=BatchSampler(SequentialSampler(dataset), 7, drop_last=False),
        batch_size=None,
        collate_fn=collator,
    )
    for a, b in zip(rows, tables, strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("value", [1.0, True, 1])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [(3, 2), (2, 2)])
def test_attention_masks_have_the_dtype_that_transformers_gives(tokenizer, value, form, lengths):
    make = FORMS[form] if form != "int32" else np.array
    rows = [{"input_ids": make([5] * n), "attention_mask": make([value] * n)} for n in lengths]
    one, two = (
        kind(tokenizer, seed=1, **options)(rows)
        for kind, options in (
            (transformers.DataCollatorForLanguageModeling, {}),
            (DataCollatorForLanguageModeling, {"rng": "hf"}),
        )
    )
    three = DataCollatorForLanguageModeling(tokenizer)(rows)
    for name in one:
        assert one[name].dtype == two[name].dtype == three[name].dtype
        assert torch.equal(one[name], two[name])


class OwnPadding(PreTrainedTokenizerFast):
    """Pads with another column, as tokenizers of documents with boxes do."""

    def _pad(self, encoded_inputs, *args, **kwargs):
        encoded = super()._pad(encoded_inputs, *args, **kwargs)
        encoded["extra"] = [9] * len(encoded["input_ids"])
        return encoded


def test_a_tokenizer_that_pads_in_its_own_way_is_asked_to(rows):
    own = OwnPadding(
        tokenizer_object=TOKENIZER.backend_tokenizer, pad_token="[PAD]", mask_token="[MASK]"
    )
    found = DataCollatorForLanguageModeling(own)(rows)
    assert (found["extra"] == 9).all()
    assert found["extra"].shape == found["input_ids"].shape


def test_attention_masks_of_two_dimensions_are_left_to_the_tokenizer(tokenizer, rows):
    shape = (len(rows[0]["input_ids"]),) * 2
    row = {"input_ids": rows[0]["input_ids"], "attention_mask": np.ones(shape, np.int64)}
    stock = transformers.DataCollatorForLanguageModeling(tokenizer, seed=1)
    expected = stock([dict(row), dict(row)])["attention_mask"]
    for rng in ("hf", "stream", "sample"):
        found = DataCollatorForLanguageModeling(tokenizer, rng=rng, seed=1)([row, row])
        assert torch.equal(torch.as_tensor(found["attention_mask"]), torch.as_tensor(expected))
        assert (found["labels"] != -100).any()


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("beside", [{"label": 1}, {"label": 1, "attention_mask": [1, 1]}, {}])
def test_columns_beside_the_rows_are_those_of_transformers(tokenizer, framework, beside):
    rows = [{"input_ids": [5, 6], **beside}, {**beside, "input_ids": [7, 8]}]
    one, two = (
        kind(tokenizer, seed=1, return_tensors=framework, **options)(rows)
        for kind, options in (
            (transformers.DataCollatorForLanguageModeling, {}),
            (DataCollatorForLanguageModeling, {"rng": "hf"}),
        )
    )
    assert list(one) == list(two)
    for name in one:
        assert one[name].dtype == two[name].dtype
        assert one[name].tolist() == two[name].tolist()
