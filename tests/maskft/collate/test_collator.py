"""The collator against Transformers': what it takes over unchanged, and what it adds."""

import copy
import pickle
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from maskft import DataCollatorForLanguageModeling, fuse_loss
from maskft.collate.randomness import EVALUATION_EPOCH
from maskkernels import hash_rows, random_words

Stock = transformers.DataCollatorForLanguageModeling
FRAMEWORKS = ["pt", "np"]


def same(a, b):
    """Two batches have the same type, keys in order, dtypes and values."""
    assert type(a) is type(b)
    assert list(a) == list(b)
    for key in a:
        assert type(a[key]) is type(b[key]), key
        assert a[key].dtype == b[key].dtype, key
        assert np.array_equal(np.asarray(a[key]), np.asarray(b[key])), key


def real(batch, i):
    return np.asarray(batch["attention_mask"][i]) == 1


def with_extras(tokenizer, rows):
    return [{**row, "weight": float(i)} for i, row in enumerate(rows)]


# --- drop-in: rng="hf" is Transformers, bit for bit ---------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["dicts", "lists", "encodings", "tensors", "special", "extras"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("multiple", [None, 8])
def test_hf_masks_are_those_of_transformers(tokenizer, rows, framework, kind, side, multiple):
    tokenizer.padding_side = side
    if kind == "lists":
        rows = [row["input_ids"] for row in rows]
    elif kind == "encodings":
        rows = [transformers.BatchEncoding(row) for row in rows]
    elif kind == "tensors":
        rows = [{k: torch.tensor(v) for k, v in row.items()} for row in rows]
    elif kind == "special":
        rows = [
            {**row, "special_tokens_mask": [int(i % 5 == 0) for i in range(len(row["input_ids"]))]}
            for row in rows
        ]
    elif kind == "extras":
        rows = with_extras(tokenizer, rows)
    options = {
        "seed": 11, "return_tensors": framework, "pad_to_multiple_of": multiple,
        "mask_replace_prob": 0.6, "random_replace_prob": 0.3,
    }  # fmt: skip
    stock, ours = Stock(tokenizer, **options), None
    ours = DataCollatorForLanguageModeling(tokenizer, **options, rng="hf")
    for _ in range(3):  # the generator goes on from batch to batch
        same(stock(rows), ours(rows))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("seed", [None, 3])
def test_hf_whole_words_are_those_of_transformers(tokenizer, framework, seed):
    text = [
        "internationalisation predicts masked words"
    ] * 6  # one length: stock cannot pad offsets
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    rows = [{k: v[i] for k, v in encoded.items()} for i in range(len(text))]
    options = {"whole_word_mask": True, "seed": seed, "return_tensors": framework}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = Stock(tokenizer, **options)
        flag = DataCollatorForLanguageModeling(tokenizer, **options, rng="hf")
        del options["whole_word_mask"]
        name = DataCollatorForLanguageModeling(
            tokenizer, **options, rng="hf", strategy="whole_word"
        )
    for ours in (flag, name):
        if seed is not None:
            stock.generator = ours.generator = None
        for collator in (stock, ours):
            torch.manual_seed(5)
            np.random.seed(5)
            collator.batch = collator(rows)
        same(stock.batch, ours.batch)


def test_hf_without_a_seed_uses_the_global_generators(tokenizer, rows):
    for framework in FRAMEWORKS:
        batches = []
        for collator in (
            Stock(tokenizer, return_tensors=framework),
            DataCollatorForLanguageModeling(tokenizer, return_tensors=framework, rng="hf"),
        ):
            torch.manual_seed(1)
            np.random.seed(1)
            batches.append(collator(rows))
        same(*batches)


def test_hf_whole_word_without_offsets_says_what_to_do(tokenizer, rows):
    with pytest.warns(UserWarning, match="mask_replace_prob"):
        collator = DataCollatorForLanguageModeling(tokenizer, strategy="whole_word", rng="hf")
    with pytest.raises(ValueError, match=r"offset_mapping.*remove_unused_columns"):
        collator(rows)


# --- drop-in: everything but the random numbers ------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("rng", ["stream", "sample", "hf"])
def test_everything_but_the_masks_equals_transformers(tokenizer, rows, framework, rng):
    rows = with_extras(tokenizer, rows)
    stock = Stock(tokenizer, return_tensors=framework)(rows)
    ours = DataCollatorForLanguageModeling(tokenizer, return_tensors=framework, rng=rng)(rows)
    assert list(stock) == list(ours)
    for key in stock:
        assert type(stock[key]) is type(ours[key])
        assert stock[key].dtype == ours[key].dtype
        assert stock[key].shape == ours[key].shape
        if key not in ("input_ids", "labels"):
            assert np.array_equal(np.asarray(stock[key]), np.asarray(ours[key]))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("raw", [True, False])
def test_causal_batches_equal_transformers(tokenizer, rows, framework, raw):
    if raw:
        rows = [row["input_ids"] for row in rows]
    options = {"mlm": False, "return_tensors": framework}
    same(
        Stock(tokenizer, **options)(rows),
        DataCollatorForLanguageModeling(tokenizer, **options)(rows),
    )


@pytest.mark.parametrize("rng", ["stream", "sample", "hf"])
@pytest.mark.parametrize("mlm", [True, False])
@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
@pytest.mark.parametrize("mapping", [True, False])
def test_examples_are_never_mutated(tokenizer, rng, mlm, make, mapping):
    row = tokenizer(["a seed and a mask"] * 2)
    rows = [
        {k: make(v[i]) for k, v in row.items()} if mapping else make(row["input_ids"][i])
        for i in range(2)
    ]
    before = copy.deepcopy(rows)
    DataCollatorForLanguageModeling(tokenizer, mlm=mlm, rng=rng, mlm_probability=1.0)(rows)
    for a, b in zip(rows, before, strict=True):
        if mapping:
            assert list(a) == list(b)
            a, b = a["input_ids"], b["input_ids"]
        assert np.array_equal(np.asarray(a), np.asarray(b))


def test_mask_functions_leave_their_input_alone(tokenizer, rows):
    ids = torch.tensor([rows[0]["input_ids"]])
    for rng in ("stream", "sample", "hf"):
        collator = DataCollatorForLanguageModeling(tokenizer, rng=rng, mlm_probability=1.0)
        kept = ids.clone()
        out, labels = collator.torch_mask_tokens(ids)
        assert torch.equal(ids, kept)
        assert not torch.equal(out, ids)
        array = ids.numpy().copy()
        out, labels = collator.numpy_mask_tokens(array)
        assert isinstance(out, np.ndarray)
        assert isinstance(labels, np.ndarray)
        assert np.array_equal(array, kept.numpy())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mlm_probability": -0.1}, "mlm_probability should be between 0 and 1"),
        ({"mlm_probability": 1.1}, "mlm_probability should be between 0 and 1"),
        ({"mlm_probability": None}, "mlm_probability should be between 0 and 1"),
        ({"mask_replace_prob": 0.9, "random_replace_prob": 0.2}, "should not exceed 1"),
        ({"mask_replace_prob": -0.1}, "mask_replace_prob should be between"),
        ({"random_replace_prob": -0.1}, "random_replace_prob should be between"),
        ({"mlm": False, "whole_word_mask": True}, "Whole word masking can only be used with mlm"),
    ],
)
def test_errors_of_the_constructor_are_those_of_transformers(tokenizer, options, text):
    with pytest.raises(ValueError, match=text) as stock:
        Stock(tokenizer, **options)
    with pytest.raises(ValueError, match=text) as ours:
        DataCollatorForLanguageModeling(tokenizer, **options)
    assert str(stock.value) == str(ours.value)


def test_a_missing_mask_token_is_the_error_of_transformers(tokenizer):
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="does not have a mask token"):
        DataCollatorForLanguageModeling(tokenizer)
    DataCollatorForLanguageModeling(tokenizer, mlm=False)


def test_a_missing_pad_token_is_the_error_of_transformers(tokenizer, rows):
    tokenizer.pad_token = None
    for examples in (rows, [row["input_ids"] for row in rows]):
        with pytest.raises(ValueError, match="pad") as stock:
            Stock(tokenizer)(examples)
        with pytest.raises(ValueError, match="pad") as ours:
            DataCollatorForLanguageModeling(tokenizer)(examples)
        assert str(stock.value) == str(ours.value)


def test_the_flag_warns_like_transformers_and_the_strategy_does_not(tokenizer):
    with pytest.warns(UserWarning, match="Random token replacement") as stock:
        Stock(tokenizer, whole_word_mask=True)
    with pytest.warns(UserWarning, match="Random token replacement") as ours:
        collator = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True)
    assert [str(w.message) for w in stock] == [str(w.message) for w in ours]
    assert (collator.mask_replace_prob, collator.random_replace_prob) == (1.0, 0.0)
    assert collator.strategy == "whole_word"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator = DataCollatorForLanguageModeling(tokenizer, strategy="whole_word")
    assert (collator.mask_replace_prob, collator.random_replace_prob) == (0.8, 0.1)
    assert collator.whole_word_mask


def test_positional_arguments_and_defaults_are_those_of_transformers(tokenizer):
    stock = Stock(tokenizer, True, False, 0.2, 0.7, 0.2, 8, "np", 3)
    ours = DataCollatorForLanguageModeling(tokenizer, True, False, 0.2, 0.7, 0.2, 8, "np", 3)
    assert isinstance(ours, Stock)
    for name in vars(stock):
        assert getattr(stock, name) == getattr(ours, name), name


def test_an_unknown_framework_is_the_error_of_transformers(tokenizer, rows):
    with pytest.raises(ValueError, match="Framework 'tf' not recognized"):
        DataCollatorForLanguageModeling(tokenizer, return_tensors="tf")(rows)


def test_a_subclass_that_masks_in_its_own_way_is_called_as_transformers_would(tokenizer, rows):
    class Own:
        def torch_mask_tokens(self, inputs, special_tokens_mask=None, offset_mapping=None):
            return inputs + 0, torch.full_like(inputs, 7)

    class Mine(DataCollatorForLanguageModeling):
        def torch_mask_tokens(self, inputs, special_tokens_mask=None, offset_mapping=None):
            return inputs + 0, torch.full_like(inputs, 7)

        def numpy_mask_tokens(self, inputs, special_tokens_mask=None, offset_mapping=None):
            assert isinstance(inputs, np.ndarray)
            return inputs + 0, np.full_like(inputs, 8)

    class Derived(Mine):
        pass

    class Mixed(Own, DataCollatorForLanguageModeling):
        pass

    for kind in (Mine, Derived, Mixed):
        for rng in ("stream", "sample", "hf"):
            batch = kind(tokenizer, rng=rng)(rows)
            assert (batch["labels"] == 7).all()
    assert (Mine(tokenizer)(rows, return_tensors="np")["labels"] == 8).all()
    assert (Mixed(tokenizer)(rows, return_tensors="np")["labels"] == -100).any()  # not defined


def test_a_subclass_may_call_the_method_it_replaces(tokenizer, rows):
    class Halved(DataCollatorForLanguageModeling):
        def torch_mask_tokens(self, inputs, special_tokens_mask=None, offset_mapping=None):
            ids, labels = super().torch_mask_tokens(inputs, special_tokens_mask, offset_mapping)
            labels[:, ::2] = -100
            return torch.where(labels == -100, inputs, ids), labels

    for rng in ("stream", "hf"):
        options = {"seed": 3, "rng": rng, "mlm_probability": 0.5}
        batch = Halved(tokenizer, **options)(rows)
        ids, labels = (batch[name] for name in ("input_ids", "labels"))
        whole = DataCollatorForLanguageModeling(tokenizer, **options)(rows)["labels"]
        assert torch.equal(labels[:, 1::2], whole[:, 1::2])
        assert (labels[:, ::2] == -100).all()
        assert (ids[labels != -100] == tokenizer.mask_token_id).any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("rng", ["stream", "sample", "hf"])
def test_a_call_is_prepare_and_mask(tokenizer, rows, rng, framework):
    options = {"seed": 3, "rng": rng, "return_tensors": framework}
    first, second = (DataCollatorForLanguageModeling(tokenizer, **options) for _ in range(2))
    unmasked = first.prepare(rows, framework)
    assert "labels" not in unmasked.batch
    if framework == "pt":
        unmasked = unmasked.to("cpu")
        assert isinstance(unmasked.batch, dict)
        unmasked.batch = transformers.BatchEncoding(unmasked.batch)
    same(first.mask(unmasked), second(rows))


# --- streams -----------------------------------------------------------------------------------


def test_stream_masks_are_fresh_and_follow_torch(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(tokenizer)
    torch.manual_seed(1)
    first, second = collator(rows), collator(rows)
    assert not torch.equal(first["labels"], second["labels"])
    torch.manual_seed(1)
    same(first, collator(rows))
    torch.manual_seed(1)
    as_numpy = collator(rows, return_tensors="np")
    assert np.array_equal(first["labels"].numpy(), as_numpy["labels"])


def test_a_seeded_stream_repeats_and_leaves_torch_alone(tokenizer, rows):
    batches = []
    for _ in range(2):
        collator = DataCollatorForLanguageModeling(tokenizer, seed=2**64 - 1)
        state = torch.get_rng_state()
        batches.append([collator(rows) for _ in range(2)])
        assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(*batches, strict=True):
        same(a, b)
    assert not torch.equal(batches[0][0]["labels"], batches[0][1]["labels"])
    other = DataCollatorForLanguageModeling(tokenizer, seed=1)(rows)
    assert not torch.equal(batches[0][0]["labels"], other["labels"])


def test_equal_rows_of_a_stream_get_different_masks(tokenizer, rows):
    batch = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)([rows[1]] * 8)
    assert len({tuple(row.tolist()) for row in batch["labels"]}) > 1


# --- rng="sample": the contract ----------------------------------------------------------------


def test_sample_masks_are_the_words_of_the_contract(tokenizer, rows):
    """The labels, worked out here from random words: T(0.15) * 2^-32, position from the first."""
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=9)
    collator.set_epoch(4)
    batch = collator(rows)
    for i, row in enumerate(rows):
        ids = torch.tensor(row["input_ids"])
        words = random_words(hash_rows(ids[None]), torch.arange(len(ids)), seed=9, epoch=4)
        maskable = torch.tensor([t not in tokenizer.all_special_ids for t in row["input_ids"]])
        labels = torch.where(maskable & (words < int(0.15 * 2**32)), ids, -100)
        assert torch.equal(batch["labels"][i, : len(ids)], labels)
        assert (batch["labels"][i, len(ids) :] == -100).all()


@pytest.mark.parametrize("strategy", ["random", "whole_word"])
def test_sample_masks_do_not_depend_on_the_batch(tokenizer, rows, strategy):
    options = {"rng": "sample", "seed": 5, "strategy": strategy, "mlm_probability": 0.4}
    collator = DataCollatorForLanguageModeling(tokenizer, **options)
    whole = collator(rows)
    expected = [
        (whole["input_ids"][i][real(whole, i)], whole["labels"][i][real(whole, i)])
        for i in range(len(rows))
    ]
    assert any((labels != -100).any() for _, labels in expected)
    order = torch.randperm(len(rows)).tolist()
    for side, size, framework, multiple in [
        ("right", 1, "pt", None), ("left", 7, "pt", None), ("left", 3, "np", 16),
        ("right", 64, "np", None), ("left", 64, "pt", 8),
    ]:  # fmt: skip
        tokenizer.padding_side = side
        collator = DataCollatorForLanguageModeling(
            tokenizer, **options, return_tensors=framework, pad_to_multiple_of=multiple
        )
        for begin in range(0, len(rows), size):
            picked = order[begin : begin + size]
            batch = collator([rows[i] for i in picked])
            for b, i in enumerate(picked):
                ids, labels = (torch.as_tensor(batch[k][b]) for k in ("input_ids", "labels"))
                keep = torch.as_tensor(real(batch, b))
                assert torch.equal(ids[keep], expected[i][0])
                assert torch.equal(labels[keep], expected[i][1])


def test_raw_lists_and_rows_without_attention_mask_get_the_same_masks(tokenizer, rows):
    for side in ("left", "right"):
        tokenizer.padding_side = side
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
        expected = collator(rows)["labels"]
        assert torch.equal(collator([row["input_ids"] for row in rows])["labels"], expected)
        tokenizer.model_input_names = ["input_ids"]
        bare = [{"input_ids": row["input_ids"]} for row in rows]
        batch = collator(bare)
        assert "attention_mask" not in batch
        assert torch.equal(batch["labels"], expected)


def test_another_epoch_or_seed_gives_other_masks(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
    first = collator(rows)["labels"]
    assert torch.equal(first, collator(rows)["labels"])
    collator.set_epoch(1)
    second = collator(rows)["labels"]
    assert not torch.equal(first, second)
    collator.set_epoch(0)
    assert torch.equal(first, collator(rows)["labels"])
    other = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=2)
    assert not torch.equal(first, other(rows)["labels"])


def test_a_column_of_sample_ids_names_the_rows(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(
        tokenizer, rng="sample", seed=1, sample_id_column="row", mlm_probability=0.5
    )
    named = [{**rows[0], "row": 2**64 - 1}, {**rows[0], "row": 5}, {**rows[0], "row": np.int64(5)}]
    batch = collator(named)
    assert "row" not in batch
    assert not torch.equal(batch["labels"][0], batch["labels"][1])
    assert torch.equal(batch["labels"][1], batch["labels"][2])
    with pytest.raises(
        ValueError, match=r"example 0 has no column 'row'; it has \['attention_mask'"
    ):
        collator(rows)
    with pytest.raises(TypeError, match="column 'row' must hold integers, got 'a'"):
        collator([{**rows[0], "row": "a"}])
    with pytest.raises(ValueError, match="does not fit in 64 bits"):
        collator([{**rows[0], "row": 2**64}])
    with pytest.raises(ValueError, match="needs examples that are mappings"):
        collator([row["input_ids"] for row in rows])


def test_evaluation_masks_never_change(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(tokenizer, seed=4)
    fixed = collator.for_evaluation()
    first = fixed(rows)
    collator.set_epoch(3)
    same(first, fixed(rows))
    sample = DataCollatorForLanguageModeling(tokenizer, seed=4, rng="sample")
    sample.set_epoch(EVALUATION_EPOCH)
    same(first, sample(rows))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_mask_alike(tokenizer, rows, clone):
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=4)
    collator.set_epoch(6)
    same(collator(rows), clone(collator)(rows))


# --- whole words -------------------------------------------------------------------------------


def words_of(tokenizer, ids):
    """Indices of the tokens of each word, by the ## rule."""
    words, before = [], None
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        if token in tokenizer.all_special_tokens:
            before = None
            continue
        if token.startswith("##") and before is not None:
            words[-1].append(i)
        else:
            words.append([i])
        before = token
    return words


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("rng", ["stream", "sample"])
def test_whole_words_are_masked_together_in_ragged_batches(tokenizer, rows, framework, rng):
    collator = DataCollatorForLanguageModeling(
        tokenizer, strategy="whole_word", rng=rng, mlm_probability=0.5, return_tensors=framework
    )
    whole = partial = 0
    for seed in range(10):
        torch.manual_seed(seed)
        collator.set_epoch(seed)
        batch = collator(rows)
        for i, row in enumerate(rows):
            labels = np.asarray(batch["labels"][i])
            for word in words_of(tokenizer, row["input_ids"]):
                picked = labels[word] != -100
                assert picked.all() == picked.any()
                whole += picked.all()
                partial += len(word) > 1 and picked.all()
    assert whole > 100
    assert partial > 20


def test_whole_words_keep_the_shares(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(
        tokenizer, strategy="whole_word", seed=1, mlm_probability=1.0
    )
    masked = kept = other = 0
    for _ in range(100):  # 30,000 tokens: 0.01 is four standard deviations of the larger share
        batch = collator(rows)
        chosen = batch["labels"] != -100
        ids, labels = batch["input_ids"][chosen], batch["labels"][chosen]
        masked += (ids == tokenizer.mask_token_id).sum().item()
        kept += (ids == labels).sum().item()
        other += ids.numel()
    assert masked / other == pytest.approx(0.8, abs=0.01)
    assert kept / other == pytest.approx(0.1, abs=0.01)


def test_word_ids_are_used_where_they_are_given_and_offsets_change_nothing(tokenizer):
    text = ["a,mask", "internationalisation of a mask"]
    rows = []
    for t in text:
        encoded = tokenizer(t, return_offsets_mapping=True)
        rows.append({**encoded, "word_ids": encoded.word_ids()})
    rows[0]["word_ids"] = [None, 0, 0, 0, None]  # "a,mask" as one word
    without = [
        {k: v for k, v in row.items() if k not in ("word_ids", "offset_mapping")} for row in rows
    ]
    offsets = [{k: v for k, v in row.items() if k != "word_ids"} for row in rows]
    ids = [{k: v for k, v in row.items() if k != "offset_mapping"} for row in rows]
    for side in ("right", "left"):
        tokenizer.padding_side = side
        collator = DataCollatorForLanguageModeling(
            tokenizer, strategy="whole_word", rng="sample", mlm_probability=0.5
        )
        glued = apart = 0
        for epoch in range(30):
            collator.set_epoch(epoch)
            by_table, by_offset, by_id = collator(without), collator(offsets), collator(ids)
            both = collator(rows)
            assert torch.equal(by_table["labels"], by_offset["labels"])  # "a,mask" has no gap
            assert torch.equal(by_id["labels"], both["labels"])
            assert torch.equal(by_table["labels"][1], by_id["labels"][1])
            assert set(both) == set(by_offset) == set(by_id) == set(by_table)
            picked = by_id["labels"][0][by_id["attention_mask"][0] == 1][1:-1] != -100
            assert picked.all() == picked.any()
            glued += int(picked.all())
            picked = by_offset["labels"][0][by_offset["attention_mask"][0] == 1][1:-1] != -100
            apart += int(picked.any() and not picked.all())  # "a" "," "mask" are words
        assert glued
        assert apart


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rng": "numpy"}, r"rng must be one of \('stream', 'sample', 'hf'\), got 'numpy'"),
        (
            {"strategy": "spam"},
            r"one of \('random', 'whole_word', 'span', .*'diffusion'\), got 'spam'",
        ),
        ({"strategy": "whole_word", "mlm": False}, "Whole word masking can only be used with mlm"),
        ({"mlm_probability": float("nan")}, "mlm_probability should be between 0 and 1"),
        ({"mask_replace_prob": float("nan")}, "mask_replace_prob should be between 0 and 1"),
        ({"random_replace_prob": float("nan")}, "random_replace_prob should be between 0 and 1"),
        ({"seed": 2**64}, r"seed must be in \[-9223372036854775808, 2\*\*64\)"),
        ({"seed": -1, "rng": "sample"}, r"seed must be in \[0, 2\*\*64\), got -1"),
    ],
)
def test_bad_arguments_are_refused(tokenizer, options, text):
    with pytest.raises(ValueError, match=text):
        DataCollatorForLanguageModeling(tokenizer, **options)


def test_bad_batches_are_refused(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(tokenizer)
    with pytest.raises(ValueError, match="the batch is empty"):
        collator([])
    for nothing in ({"input_ids": []}, pa.table({"input_ids": pa.array([], pa.list_(pa.int64()))})):
        with pytest.raises(ValueError, match="the batch is empty"):
            collator(nothing)
    with pytest.raises(TypeError, match="example 1 a list"):
        collator([rows[0], rows[0]["input_ids"]])
    with pytest.raises(TypeError, match="example 1 a dict"):
        collator([rows[0]["input_ids"], rows[0]])
    with pytest.raises(
        ValueError, match=r"example 1 has no column 'attention_mask'; it has \['input_ids'"
    ):
        collator([rows[0], {"input_ids": [1, 2], "token_type_ids": [0, 0]}])
    for bad in ("abc", None, 5):
        with pytest.raises(TypeError, match="example 0 must be a mapping or a sequence of ids"):
            collator([bad])
    words = DataCollatorForLanguageModeling(tokenizer, strategy="whole_word")
    for column in ({"word_ids": [None, 0]}, {"offset_mapping": [(0, 1)]}):
        with pytest.raises(ValueError, match=r"example 0 has \d+ input_ids but \d entries in"):
            words([{**rows[0], **column}])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        collator([[2, -1, 3]])
    with pytest.raises(TypeError, match=r"int32 or int64, got torch\.float32"):
        collator.torch_mask_tokens(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="epoch must not be negative"):
        collator.set_epoch(-1)
    with pytest.raises(ValueError, match="`tags` in this case"):
        collator([{**rows[0], "tags": [1, 2]}, {**rows[1], "tags": [1, 2, 3]}])


@pytest.mark.parametrize("rng", ["stream", "sample"])
@pytest.mark.parametrize("strategy", ["random", "whole_word"])
def test_rows_with_nothing_to_mask_stay_as_they_are(tokenizer, rng, strategy):
    collator = DataCollatorForLanguageModeling(
        tokenizer, rng=rng, strategy=strategy, mlm_probability=1.0
    )
    pad = tokenizer.pad_token_id
    rows = [
        {"input_ids": [2, 3, pad], "attention_mask": [1, 1, 0]},
        {"input_ids": [pad, pad, pad], "attention_mask": [0, 0, 0]},
    ]
    batch = collator(rows)
    assert torch.equal(batch["input_ids"], torch.tensor([[2, 3, pad], [pad, pad, pad]]))
    assert (batch["labels"] == -100).all()


def test_added_tokens_are_seen_by_a_collator_made_before(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", mlm_probability=1.0)
    collator(rows)
    tokenizer.add_tokens(["newword"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENT]"]})
    new, special = tokenizer.convert_tokens_to_ids(["newword", "[ENT]"])
    batch = collator([[2, new, special, 3]])
    assert batch["labels"].tolist() == [[-100, new, -100, -100]]


def test_label_positions_spare_a_fused_model_the_search(tokenizer, rows, tiny_bert):
    plain, told = (
        DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1, label_positions=asked)
        for asked in (False, True)
    )
    batch, other = told(rows), plain(rows)
    for labels, places in zip(batch["labels"], batch["label_positions"], strict=True):
        assert torch.equal(places[places >= 0], (labels != -100).nonzero().squeeze(1))
    most = int((batch["labels"] != -100).sum(1).max())
    assert batch["label_positions"].shape == (len(rows), most)
    assert "label_positions" not in other
    assert (
        told([dict(row) for row in rows], return_tensors="np")["label_positions"].dtype == "int64"
    )
    fuse_loss(tiny_bert.eval())
    assert torch.equal(tiny_bert(**batch).loss, tiny_bert(**other).loss)
