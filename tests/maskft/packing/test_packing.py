"""Packed batches: the masks and the loss of the padded batch, and what keeps rows apart."""

import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    ConvBertConfig,
    EsmConfig,
    FNetConfig,
    IBertConfig,
    ModernBertConfig,
    RobertaConfig,
    set_seed,
)

from maskft import DataCollatorForLanguageModeling, DataCollatorWithPacking, PackedBatchSampler
from maskft.packing.attention import lay_out, packed_attention
from maskft.strategy import Entity

TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 80,
}  # fmt: skip


def flat(batch, name="input_ids"):
    """A column of a padded batch without its padding."""
    return batch[name][batch["attention_mask"] != 0]


def pair(tokenizer, padded=None, **options):
    """(padding collator, packing collator) with the same masks."""
    options = {"rng": "sample", "seed": 7} | options
    packed = {"attention": "varlen"} | {
        k: options.pop(k) for k in list(options)
        if k in ("attention", "total_length", "max_samples", "max_length", "pad_to_multiple_of")
    }  # fmt: skip
    return (
        DataCollatorForLanguageModeling(tokenizer, **options),
        DataCollatorWithPacking(tokenizer, **options, **packed),
    )


def without_types(rows):
    return [{k: v for k, v in row.items() if k != "token_type_ids"} for row in rows]


FORMS = {
    "lists": lambda rows: rows,
    "tensors": lambda rows: [{k: torch.tensor(v) for k, v in row.items()} for row in rows],
    "int32": lambda rows: [{k: np.array(v, np.int32) for k, v in row.items()} for row in rows],
    "table": pa.Table.from_pylist,
    "encodings": lambda rows: [transformers.BatchEncoding(row) for row in rows],
    "columns": lambda rows: {k: [row[k] for row in rows] for k in rows[0]},
    "ids": lambda rows: [row["input_ids"] for row in rows],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strategy", ["random", "whole_word"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_masks_are_those_of_the_padded_batch(tokenizer, rows, form, strategy, side):
    tokenizer.padding_side = side
    padding, packing = pair(tokenizer, strategy=strategy, mlm_probability=0.4)
    for epoch in range(3):
        padding.set_epoch(epoch)
        packing.set_epoch(epoch)
        expected, packed = padding(rows), packing(FORMS[form](rows))
        for name in ("input_ids", "labels"):
            assert packed[name].dtype == torch.int64
            assert packed[name].shape == (1, int(expected["attention_mask"].sum()))
            assert torch.equal(packed[name][0], flat(expected, name))
    assert "attention_mask" not in packed
    assert ("token_type_ids" in packed) == (form != "ids")


@pytest.mark.parametrize("selection", ["bernoulli", "budget"])
@pytest.mark.parametrize("strategy", ["span", "ngram", "entity", "keyword", Entity(rate=0.7)])
@pytest.mark.parametrize("mask_only", [None, 0, "allowed"])
def test_every_strategy_masks_packed_rows_as_padded_ones(
    tokenizer, rows, strategy, mask_only, selection
):
    rows = [
        {
            **row,
            "entity_ids": [-1 if i % 7 < 4 else i // 7 for i in range(len(row["input_ids"]))],
            "keyword_weights": [1.0 + i % 3 for i in range(len(row["input_ids"]))],
            "allowed": [int(i % 5 > 0) for i in range(len(row["input_ids"]))],
        }
        for row in rows
    ]
    if mask_only != "allowed":
        rows = [{k: v for k, v in row.items() if k != "allowed"} for row in rows]
    padding, packing = pair(tokenizer, strategy=strategy, mask_only=mask_only, selection=selection)
    masked = 0
    for epoch in range(4):
        padding.set_epoch(epoch)
        packing.set_epoch(epoch)
        expected, packed = padding(rows), packing(rows)
        for name in ("input_ids", "labels"):
            assert torch.equal(packed[name][0], flat(expected, name))
        masked += int((packed["labels"] != -100).sum())
    assert masked > 0


def test_masks_of_a_stream_are_those_of_the_padded_batch_too(tokenizer, rows):
    padding, packing = pair(tokenizer, rng="stream", seed=3)
    for _ in range(2):
        expected, packed = padding(rows), packing(rows)
        assert torch.equal(packed["labels"][0], flat(expected, "labels"))


def test_special_tokens_are_never_masked(tokenizer, rows):
    packed = pair(tokenizer, mlm_probability=1.0)[1](rows)
    original = torch.cat([torch.tensor(row["input_ids"]) for row in rows])
    special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
    assert special.sum() == 2 * len(rows)
    assert torch.equal(packed["labels"][0] != -100, ~special)
    assert torch.equal(packed["input_ids"][0][special], original[special])


def test_a_special_tokens_mask_adds_to_the_table(tokenizer, rows):
    rows = [{**row, "special_tokens_mask": [int(i % 3 == 0) for i in range(len(row["input_ids"]))]}
            for row in rows]  # fmt: skip
    padding, packing = pair(tokenizer, mlm_probability=0.8)
    packed = packing(rows)
    assert torch.equal(packed["labels"][0], flat(padding(rows), "labels"))
    assert "special_tokens_mask" not in packed


@pytest.mark.parametrize("column", ["offset_mapping", "word_ids"])
@pytest.mark.parametrize("form", ["lists", "arrays"])
def test_whole_words_come_from_columns_too(tokenizer, column, form):
    texts = ["internationalisation predicts masked words", "a fox", "antidisestablishmentarianism"]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    encoded["word_ids"] = [encoded.word_ids(i) for i in range(len(texts))]
    rows = [{k: encoded[k][i] for k in ("input_ids", "attention_mask", column)} for i in range(3)]
    if form == "arrays" and column == "offset_mapping":
        rows = [{**row, column: np.array(row[column])} for row in rows]
    padding, packing = pair(tokenizer, strategy="whole_word", mlm_probability=0.5)
    for epoch in range(4):
        padding.set_epoch(epoch)
        packing.set_epoch(epoch)
        assert torch.equal(packing(rows)["labels"][0], flat(padding(rows), "labels"))


def test_sample_ids_come_from_their_column(tokenizer, rows):
    rows = [{**row, "row": i} for i, row in enumerate(rows)]
    padding, packing = pair(tokenizer, sample_id_column="row", mlm_probability=0.5)
    packed = packing(rows)
    assert torch.equal(packed["labels"][0], flat(padding(rows), "labels"))
    assert "row" not in packed


def test_positions_and_bounds_are_those_of_flash_attention(tokenizer, rows):
    """Against Transformers' own flattening collator."""
    stock = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    expected = stock([{"input_ids": row["input_ids"]} for row in rows])
    packed = pair(tokenizer)[1](rows)
    assert torch.equal(packed["position_ids"], expected["position_ids"])
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert packed[name].dtype == expected[name].dtype == torch.int32
        assert torch.equal(packed[name], expected[name])
    for name in ("max_length_q", "max_length_k"):
        assert isinstance(packed[name], int)
        assert packed[name] == expected[name]


def test_flash_attention_is_handed_the_bounds(tokenizer, rows, tiny_bert):
    """What the model passes on reaches the attention function, under the names it reads."""
    seen = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        seen.append((attention_mask, kwargs))
        return value.transpose(1, 2), None

    transformers.AttentionInterface.register("recorded", attention)
    tiny_bert.config._attn_implementation = "recorded"
    packed = pair(tokenizer)[1](rows)
    tiny_bert(**packed)
    attention_mask, kwargs = seen[0]
    assert attention_mask is None
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"):
        assert kwargs[name] is packed[name]


def test_padding_that_examples_bring_along_is_left_out(tokenizer, rows):
    padded = tokenizer.pad(rows, padding="longest")
    padded = [{k: padded[k][i] for k in padded} for i in range(len(rows))]
    packing = pair(tokenizer, mlm_probability=0.5)[1]
    packed, expected = packing(padded), packing(rows)
    for name, value in expected.items():
        assert np.array_equal(packed[name], value), name
    tokenizer.padding_side = "left"
    left = tokenizer.pad(rows, padding="longest")
    left = [{k: left[k][i] for k in left} for i in range(len(rows))]
    assert torch.equal(packing(left)["labels"], expected["labels"])
    rows[2]["attention_mask"][3] = 0
    with pytest.raises(ValueError, match="attention_mask of example 2 leaves out tokens between"):
        packing(rows)


def test_rows_are_cut_to_max_length(tokenizer, rows):
    cut = [{k: v[:6] for k, v in row.items()} for row in rows]
    packing = pair(tokenizer, max_length=6)[1]
    for name, value in pair(tokenizer)[1](cut).items():
        assert np.array_equal(packing(rows)[name], value), name


def test_padding_to_a_total_is_a_row_of_its_own(tokenizer, rows):
    rows, count = rows[:3], sum(len(row["input_ids"]) for row in rows[:3])
    plain, filled = pair(tokenizer)[1](rows), pair(tokenizer, total_length=200)[1](rows)
    for name in ("input_ids", "position_ids", "labels", "token_type_ids"):
        assert filled[name].shape == (1, 200)
        assert torch.equal(filled[name][:, :count], plain[name])
    assert (filled["input_ids"][0, count:] == tokenizer.pad_token_id).all()
    assert (filled["labels"][0, count:] == -100).all()
    assert filled["cu_seq_lens_q"].tolist() == [*plain["cu_seq_lens_q"].tolist(), 200]
    assert filled["max_length_q"] == 200 - count
    with pytest.raises(ValueError, match=rf"have {count} tokens, total_length is 10.*Packed"):
        pair(tokenizer, total_length=10)[1](rows)
    multiple = pair(tokenizer, pad_to_multiple_of=64)[1](rows)
    assert multiple["input_ids"].shape == (1, -(-count // 64) * 64)


def test_shapes_and_numbers_can_be_static(tokenizer, rows):
    packing = pair(tokenizer, total_length=100, max_samples=8)[1]
    batches = [packing(part) for part in (rows[:3], rows[3:4], rows[:1] * 7)]
    for batch in batches:
        assert batch["cu_seq_lens_q"].shape == (10,)
        assert batch["cu_seq_lens_q"][-1] == 100
        assert (batch["cu_seq_lens_q"].diff() >= 0).all()
        assert batch["max_length_q"] == 100
    with pytest.raises(ValueError, match="max_samples is 2"):
        pair(tokenizer, total_length=100, max_samples=2)[1](rows[:4])


def test_causal_labels_leave_out_the_first_token_of_each_row(tokenizer, rows):
    packing = DataCollatorWithPacking(tokenizer, mlm=False, attention="varlen")
    stock = transformers.DataCollatorWithFlattening()
    expected = stock([{"input_ids": row["input_ids"]} for row in rows])
    assert torch.equal(packing(rows)["labels"], expected["labels"])


def test_numpy_batches_hold_the_same(tokenizer, rows):
    packing = pair(tokenizer)[1]
    for name, value in packing(rows).items():
        other = packing(rows, return_tensors="np")[name]
        assert isinstance(other, (np.ndarray, int))
        assert np.array_equal(other, value)


def test_workers_and_evaluation_get_it_whole(tokenizer, rows):
    packing = pair(tokenizer)[1]
    packing.set_epoch(5)
    again = pickle.loads(pickle.dumps(packing))
    assert torch.equal(again(rows)["labels"], packing(rows)["labels"])
    fixed = packing.for_evaluation()
    assert isinstance(fixed, DataCollatorWithPacking)
    labels = fixed(rows)["labels"]
    packing.set_epoch(6)
    assert torch.equal(fixed(rows)["labels"], labels)


# --- the model sees what it would see in the padded batch -----------------------------------------


def models(vocab_size):
    """Models that can be packed, and what fits them."""
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    sized = {**TINY, "vocab_size": vocab_size}
    yield "bert", BertConfig(**sized), {}
    yield "roberta", RobertaConfig(**{**sized, **special}), {"position_ids_start": 1}
    local = {"local_attention": 8, "global_attn_every_n_layers": 2}
    yield "modernbert", ModernBertConfig(**{**sized, **special, **local}), {"sliding_window": 4}


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("total_length", [None, 320])
def test_loss_and_gradients_are_those_of_the_padded_batch(
    tokenizer, rows, name, kind, total_length
):
    config, fits = next((c, f) for n, c, f in models(len(tokenizer)) if n == name)
    set_seed(0)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation=kind).eval()
    options = {"rng": "sample", "seed": 1, "mlm_probability": 0.4}
    if name == "roberta":  # it takes a random [PAD] for padding and leaves out its position
        options["random_replace_prob"] = 0.0
    packing = DataCollatorWithPacking.for_model(
        model, tokenizer, **options, total_length=total_length
    )
    assert packing.attention == "block_diagonal"
    assert packing.mask_dtype == (torch.bool if kind == "sdpa" else torch.float32)
    for argument, value in fits.items():
        assert getattr(packing, argument) == value
    rows = without_types(rows) if name == "modernbert" else rows
    grads, losses = [], []
    for collator in (DataCollatorForLanguageModeling(tokenizer, **options), packing):
        model.zero_grad()
        loss = model(**collator(rows)).loss
        loss.backward()
        losses.append(loss.item())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert (grads[0] - grads[1]).norm() < 1e-5 * grads[0].norm()


def test_rows_that_see_each_other_would_be_noticed(tokenizer, rows, tiny_bert):
    """The comparison above can fail: without its mask the packed batch gives another loss."""
    packing = DataCollatorWithPacking.for_model(tiny_bert, tokenizer, rng="sample")
    batch = packing(rows)
    tiny_bert.eval()
    loss = tiny_bert(**batch).loss.item()
    del batch["attention_mask"]
    assert tiny_bert(**batch).loss.item() != pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ConvBertConfig, {"embedding_size": 16}),  # convolutions reach over the border
        (FNetConfig, {}),  # no attention at all
        (EsmConfig, {"pad_token_id": 0, "mask_token_id": 4}),  # takes no mask of four dimensions
    ],
)
def test_models_that_cannot_be_packed_get_padded_batches(tokenizer, rows, config, options):
    set_seed(0)
    model = AutoModelForMaskedLM.from_config(config(**{**TINY, "vocab_size": 90, **options}))
    packing = DataCollatorWithPacking.for_model(model, tokenizer, rng="sample", seed=7)
    assert packing.attention == "padded"
    assert model.training
    padded = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=7)(rows)
    for name, value in packing(rows).items():
        assert torch.equal(value, padded[name])
    with pytest.raises(ValueError, match=r"cannot take attention='block_diagonal'.*padded"):
        DataCollatorWithPacking.for_model(model, tokenizer, attention="block_diagonal")


def test_positions_of_a_model_that_counts_in_its_own_way_are_found():
    config = IBertConfig(**{**TINY, "vocab_size": 90, "pad_token_id": 1})
    found = packed_attention(AutoModelForMaskedLM.from_config(config), 90, None)
    assert found["position_ids_start"] == 2
    assert found["attention"] == "block_diagonal"


def test_bounds_that_a_model_ignores_are_refused(tokenizer, tiny_bert):
    with pytest.raises(ValueError, match=r"sdpa.*cannot take attention='varlen': rows see each"):
        DataCollatorWithPacking.for_model(tiny_bert, tokenizer, attention="varlen")


def test_a_bool_mask_is_refused_for_eager_attention():
    model = BertForMaskedLM._from_config(
        BertConfig(**TINY, vocab_size=90), attn_implementation="eager"
    )
    ends = torch.tensor([0, 4, 9])
    assert lay_out(ends, attention="block_diagonal")["attention_mask"].dtype == torch.bool
    assert packed_attention(model, 90, None)["mask_dtype"] == torch.float32


# --- the sampler ----------------------------------------------------------------------------------


def lengths(count=500, seed=0):
    drawn = np.exp(np.random.default_rng(seed).normal(3, 0.7, count))
    return np.clip(drawn, 4, 64).astype(int)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("replicas", [1, 3])
def test_every_row_is_in_one_batch_of_an_epoch(shuffle, replicas):
    drawn = lengths()
    samplers = [
        PackedBatchSampler(drawn, 128, shuffle=shuffle, seed=4, num_replicas=replicas, rank=r)
        for r in range(replicas)
    ]
    assert len({len(sampler) for sampler in samplers}) == 1
    batches = [batch for sampler in samplers for batch in sampler]
    assert len(batches) == sum(map(len, samplers))
    distinct = {tuple(batch) for batch in batches}
    assert len(batches) - len(distinct) < replicas  # the last ones come again
    assert sorted(i for batch in distinct for i in batch) == list(range(len(drawn)))
    used = [drawn[list(batch)].sum() for batch in distinct]
    assert max(used) <= 128
    assert np.mean(used) > 0.98 * 128


def test_uneven_batches_are_left_out_if_asked():
    whole = PackedBatchSampler(lengths(), 128)
    shares = [
        PackedBatchSampler(lengths(), 128, num_replicas=4, rank=r, drop_last=True) for r in range(4)
    ]
    assert {len(share) for share in shares} == {len(whole) // 4}
    dealt = [batch for together in zip(*shares, strict=True) for batch in together]
    assert dealt == list(whole)[: len(dealt)]


def test_epochs_are_shuffled_by_seed_and_epoch_alone():
    one, two = (PackedBatchSampler(lengths(), 128, seed=1) for _ in range(2))
    first = list(one)
    assert first == list(one) == list(two)
    one.set_epoch(1)
    assert list(one) != first
    assert len(one) == len(list(one)) == len(first)
    assert len({frozenset(batch) for batch in first} & {frozenset(batch) for batch in one}) < 5
    two.set_epoch(1)
    assert list(one) == list(two)
    one.set_epoch(0)
    assert list(one) == first
    assert list(PackedBatchSampler(lengths(), 128, seed=3)) != first
    still = PackedBatchSampler(lengths(), 128, shuffle=False)
    before = list(still)
    still.set_epoch(1)
    assert list(still) == before
    assert all(batch == sorted(batch) for batch in before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_full_blocks(tokenizer, rows, workers):
    sampler = PackedBatchSampler([len(row["input_ids"]) for row in rows], 64, seed=2)
    packing = pair(tokenizer)[1]
    loader = DataLoader(rows, batch_sampler=sampler, collate_fn=packing, num_workers=workers)
    assert len(loader) == len(sampler)
    total = 0
    for batch, indices in zip(loader, sampler, strict=True):
        assert batch["input_ids"].numel() <= 64
        expected = packing([rows[i] for i in indices])
        assert torch.equal(batch["labels"], expected["labels"])
        total += batch["input_ids"].numel()
    assert total == sum(len(row["input_ids"]) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 2, "num_replicas": 2}, ValueError, r"rank must be in \[0, num_replicas=2\)"),
        ({"block_size": 10}, ValueError, r"row \d+ has \d+ tokens, a block holds 10"),
        ({"block_size": 0}, ValueError, r"block_size must be a number of tokens in"),
        ({"block_size": 8.5}, TypeError, "block_size must be an integer, got 8.5"),
        ({"block_size": 1 << 63}, ValueError, "block_size must be"),
        ({"num_replicas": 0}, ValueError, "num_replicas must be positive, got 0"),
        ({"num_replicas": 1.5}, TypeError, "num_replicas must be an integer, got 1.5"),
        ({"rank": math.nan}, TypeError, "rank must be an integer, got nan"),
        ({"seed": 1 << 64}, ValueError, r"seed must be in \[-2\*\*63, 2\*\*64\)"),
        ({"window": math.nan}, TypeError, "window must be an integer, got nan"),
        ({"window": 0}, ValueError, "window must be positive, got 0"),
        ({"lengths": None}, TypeError, "lengths must be a sequence of integers"),
        ({"lengths": [1 << 63]}, TypeError, "lengths must be a sequence of integers"),
        ({"lengths": torch.tensor(3)}, ValueError, "lengths must be dense and have shape"),
        ({"lengths": torch.tensor([3]).to_sparse()}, ValueError, "lengths must be dense"),
        ({"seed": 1.5}, TypeError, "integer"),
        ({"lengths": [1.5]}, TypeError, "lengths must hold integers"),
    ],
)  # fmt: skip
def test_a_sampler_refuses_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        PackedBatchSampler(**{"lengths": lengths(), "block_size": 128, **arguments})


@pytest.mark.parametrize("drop_last", [False, True])
def test_more_ranks_than_batches_take_no_memory(drop_last):
    """The ranks' shares are those of a list of batches that is repeated until it comes out even."""
    whole = list(PackedBatchSampler([5, 3, 4, 4], 8))
    for replicas, rank in [(3, 0), (3, 2), (1 << 63, 0), (1 << 63, 1), (1 << 63, (1 << 62) + 1)]:
        sampler = PackedBatchSampler(
            [5, 3, 4, 4], 8, num_replicas=replicas, rank=rank, drop_last=drop_last
        )
        assert list(sampler) == ([] if drop_last else [whole[rank % 2]])


def test_seeds_at_the_ends_of_64_bits_have_epochs():
    for seed in (-(1 << 63), (1 << 64) - 1):
        sampler = PackedBatchSampler(lengths(), 128, seed=seed)
        sampler.set_epoch(3)
        assert sorted(i for batch in sampler for i in batch) == list(range(len(lengths())))
    for epoch, error in [(-1, ValueError), (1.0, TypeError)]:
        with pytest.raises(error, match="epoch must"):
            sampler.set_epoch(epoch)
    assert list(PackedBatchSampler([5, 3], 8, window=1 << 63)) == [[0, 1]]


def test_long_rows_are_counted_as_a_block_and_cut(tokenizer, rows):
    sampler = PackedBatchSampler(
        [len(row["input_ids"]) for row in rows], 12, overlong="truncate", shuffle=False
    )
    packing = pair(tokenizer, max_length=12, total_length=12)[1]
    assert sum(len(batch) for batch in sampler) == len(rows)
    for batch in sampler:  # what does not fit raises
        count = sum(min(len(rows[i]["input_ids"]), 12) for i in batch)
        assert packing([rows[i] for i in batch])["cu_seq_lens_q"][len(batch)] == count


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attention": "flash"}, ValueError, r"attention must be one of .*got 'flash'"),
        ({"rng": "hf"}, ValueError, "rng='hf' draws the masks of a padded batch"),
        ({"total_length": 0}, ValueError, "total_length must be positive, got 0"),
        ({"max_length": -1}, ValueError, "max_length must be positive, got -1"),
        ({"max_length": 1.5}, TypeError, "max_length must be an integer, got 1.5"),
        ({"max_samples": 4}, ValueError, "max_samples goes with total_length"),
        ({"position_ids_start": math.nan}, TypeError, "position_ids_start must be an integer, got"),
        ({"position_ids_start": None}, TypeError, "position_ids_start must be an integer, got"),
        ({"position_ids_start": -1}, ValueError, "position_ids_start must not be negative, got -1"),
        ({"sliding_window": -3}, ValueError, "sliding_window must not be negative, got -3"),
        ({"sliding_window": 2.0}, TypeError, "sliding_window must be an integer, got 2.0"),
        ({"mask_dtype": "bool"}, TypeError, "mask_dtype must be torch.bool or a float"),
        ({"mask_dtype": torch.int64}, TypeError, "mask_dtype must be torch.bool or a float"),
    ],
)
def test_options_that_do_not_fit_are_refused(tokenizer, options, error, message):
    with pytest.raises(error, match=message):
        DataCollatorWithPacking(tokenizer, **{"attention": "varlen", **options})


def test_examples_that_do_not_fit_are_refused(tokenizer, rows):
    packing = pair(tokenizer)[1]
    with pytest.raises(ValueError, match=r"columns \['weight'\] have no place in a packed batch"):
        packing([{**row, "weight": 1.0} for row in rows])
    with pytest.raises(ValueError, match="'token_type_ids' does not have one value for each token"):
        packing([{**row, "token_type_ids": [0]} for row in rows])
    with pytest.raises(ValueError, match="no column 'input_ids'"):
        packing([{"attention_mask": row["attention_mask"]} for row in rows])
    with pytest.raises(ValueError, match="the batch is empty"):
        packing([])
    with pytest.raises(TypeError, match="input_ids"):
        packing([{"input_ids": ["the", "fox"]}])
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="needs a tokenizer with a pad token"):
        pair(tokenizer, total_length=500)[1](rows)
    assert pair(tokenizer)[1](rows)["input_ids"].shape[0] == 1  # nothing to pad


def test_rows_without_tokens_are_rows(tokenizer):
    packed = pair(tokenizer)[1]([[2, 7, 3], [], [2, 3]])
    assert packed["cu_seq_lens_q"].tolist() == [0, 3, 3, 5]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    empty = pair(tokenizer)[1]([[], []])
    assert empty["input_ids"].shape == (1, 0)


def test_the_trial_leaves_each_module_in_its_mode(tiny_bert, tokenizer):
    tiny_bert.train()
    tiny_bert.bert.embeddings.eval()
    DataCollatorWithPacking.for_model(tiny_bert, tokenizer)
    assert tiny_bert.training
    assert tiny_bert.bert.encoder.training
    assert not tiny_bert.bert.embeddings.training
