"""MaskInputs around collators of all kinds: masks by the contract, and nothing else changed."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, Subset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
)

import maskft
from maskft import MaskInputs, RateSchedule, UnmaskedCollator, mask_batch
from maskkernels import MaskingPolicy
from tests.support import contract
from tests.support.small import CORPUS

MASK = 4
SEED, EPOCH = 7, 3


@pytest.fixture
def data(tokenizer):
    return [{**tokenizer(text), "labels": i % 3, "number": i} for i, text in enumerate(CORPUS)]


def make(made_with, collator=None, rate=0.4, **options):
    collator = collator or DataCollatorWithPadding(made_with)
    return MaskInputs(collator, rate, **{"rng": "sample", "seed": SEED} | options)


def by_the_contract(tokenizer, ids, rate=0.4, epoch=0, sample=None):
    """The masked ids of one row, in plain integers."""
    policy = MaskingPolicy(MASK, len(tokenizer), rate, mask_share=1.0, random_share=0.0)
    maskable = [i not in tokenizer.all_special_ids for i in range(len(tokenizer))]
    return contract.mask_row(
        ids, policy=policy, seed=SEED, epoch=epoch, sample=sample, maskable=maskable
    )[0]


def rows_of(batches):
    """{number: the real ids} of batches."""
    found = {}
    for batch in batches:
        for ids, real, i in zip(
            batch["input_ids"], batch["attention_mask"].bool(), batch["number"], strict=True
        ):
            found[int(i)] = ids[real].tolist()
    return found


@pytest.fixture
def expected(tokenizer, data):
    return [
        {i: by_the_contract(tokenizer, row["input_ids"], epoch=e) for i, row in enumerate(data)}
        for e in range(2)
    ]


@pytest.mark.parametrize(
    ("side", "multiple", "size"), [("right", None, 3), ("left", None, 20), ("right", 16, 1)]
)
def test_masks_follow_the_contract_whatever_the_batch(
    tokenizer, data, expected, side, multiple, size
):
    tokenizer.padding_side = side
    collator = make(tokenizer, DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple))
    assert expected[0] != expected[1]
    for epoch in (0, 1, 0):
        collator.set_epoch(epoch)
        loader = DataLoader(data, size, shuffle=True, collate_fn=collator)
        assert rows_of(loader) == expected[epoch]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "method"), [(2, "fork"), (3, "spawn")])
def test_masks_do_not_depend_on_workers(tokenizer, data, expected, workers, method):
    collator = make(tokenizer)
    collator(data[:2])
    loader = DataLoader(
        data, 3, shuffle=True, collate_fn=collator, num_workers=workers,
        multiprocessing_context=method, persistent_workers=True,
    )  # fmt: skip
    for epoch in (0, 1, 0):
        collator.set_epoch(epoch)
        assert rows_of(loader) == expected[epoch]


def test_masks_do_not_depend_on_ranks_or_on_where_an_epoch_resumes(tokenizer, data, expected):
    found = {}
    for rank in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank)
        found |= rows_of(DataLoader(data, 3, sampler=sampler, collate_fn=make(tokenizer)))
    assert found == expected[0]
    rest = rows_of(DataLoader(Subset(data, range(6, 20)), 3, collate_fn=make(tokenizer)))
    assert rest == {i: ids for i, ids in expected[0].items() if i >= 6}


def test_everything_but_the_ids_is_the_collators(tokenizer, data):
    inner = DataCollatorWithPadding(tokenizer)
    plain, masked = inner(data), make(tokenizer, inner)(data)
    assert type(masked) is type(plain)
    assert plain.keys() == masked.keys()
    for name in plain:
        assert torch.equal(plain[name], masked[name]) == (name != "input_ids"), name
    evaluated = make(tokenizer, inner).for_evaluation()(data)
    assert all(torch.equal(plain[name], evaluated[name]) for name in plain)


def test_the_batch_of_the_collator_is_not_written_to(tokenizer, data):
    kept = DataCollatorWithPadding(tokenizer)(data)
    before = {name: value.clone() for name, value in kept.items()}
    batch = make(tokenizer, lambda _: kept, tokenizer=tokenizer)(data)
    assert not torch.equal(batch["input_ids"], kept["input_ids"])
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_labels_that_share_memory_with_the_ids_stay(tokenizer, data):
    """A causal collator's labels are the tokens themselves."""
    inner = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = [{"input_ids": row["input_ids"]} for row in data]
    plain, masked = inner(rows), make(tokenizer, inner)(rows)
    assert torch.equal(plain["labels"], masked["labels"])
    assert (masked["input_ids"] == MASK).any()

    def tied(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    batch = make(tokenizer, tied, tokenizer=tokenizer)([data[0], data[0]])
    assert batch["labels"].tolist() == [data[0]["input_ids"]] * 2
    assert batch["input_ids"].tolist() == [by_the_contract(tokenizer, data[0]["input_ids"])] * 2


def test_token_labels_stay_with_their_tokens(tokenizer, data):
    rows = [{**row, "labels": list(range(len(row["input_ids"])))} for row in data]
    inner = DataCollatorForTokenClassification(tokenizer)
    masked = make(tokenizer, inner)(rows)
    assert torch.equal(masked["labels"], inner(rows)["labels"])
    assert rows_of([masked])[0] == by_the_contract(tokenizer, rows[0]["input_ids"])


def test_only_the_encoder_of_an_encoder_decoder_is_masked(tokenizer, data, expected):
    class Model:
        def prepare_decoder_input_ids_from_labels(self, labels):
            return labels.clamp(min=0)

    rows = [{**row, "labels": row["input_ids"]} for row in data]
    inner = DataCollatorForSeq2Seq(tokenizer, model=Model())
    plain, masked = inner(rows), make(tokenizer, inner)(rows)
    for name in ("labels", "decoder_input_ids", "attention_mask"):
        assert torch.equal(plain[name], masked[name])
    assert rows_of([masked]) == expected[0]


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"rate": "uniform"}, {"strategy": "whole_word"}, {"mask_only": "question"},
        {"sample_id_column": "number"}, {"share": 0.5, "strategy": "span", "selection": "budget"},
    ],
    ids=str,
)  # fmt: skip
def test_packed_rows_have_the_masks_of_padded_ones(tokenizer, data, flash, options):
    keys = {options.get("mask_only"), options.get("sample_id_column")}
    rows = [{**row, "question": [i % 2 for i in range(len(row["input_ids"]))]} for row in data]
    rows = [{k: v for k, v in row.items() if k == "input_ids" or k in keys} for row in rows]
    packing = DataCollatorWithFlattening(return_flash_attn_kwargs=flash)
    packed = make(tokenizer, packing, tokenizer=tokenizer, **options)(rows)
    padded = make(tokenizer, **options)(rows)
    assert (
        packed["input_ids"][0].tolist()
        == padded["input_ids"][padded["attention_mask"].bool()].tolist()
    )
    assert (packed["input_ids"] == MASK).any()


def test_our_packing_collator_packs_them_too(tokenizer, data):
    rows = [{"input_ids": row["input_ids"], "number": row["number"]} for row in data]
    for attention in ("varlen", "block_diagonal"):
        inner = maskft.DataCollatorWithPacking(
            tokenizer, mlm=False, attention=attention, total_length=400
        )
        batch = make(tokenizer, inner, sample_id_column="number")(rows)
        expected = [
            by_the_contract(tokenizer, row["input_ids"], sample=row["number"]) for row in rows
        ]
        count = sum(map(len, expected))
        assert batch["input_ids"][0, :count].tolist() == [*itertools.chain(*expected)]
        assert (batch["input_ids"][0, count:] == tokenizer.pad_token_id).all()


def test_uniform_rates_are_the_words_of_stream_10(tokenizer, data):
    collator = make(tokenizer, rate="uniform")
    collator.set_epoch(EPOCH)
    found = rows_of([collator(data)])
    rates = []
    for i, row in enumerate(data):
        ids = row["input_ids"]
        sample = contract.row_hash(dict(enumerate(ids)))
        rates.append((contract.word(SEED, EPOCH, 10, sample, 0) + 0.5) / 2**32)
        assert found[i] == by_the_contract(tokenizer, ids, rates[-1], EPOCH)
    assert min(rates) < 0.3 < 0.7 < max(rates)


def test_share_masks_the_rows_with_a_low_word_of_stream_11(tokenizer, data, expected):
    found = rows_of([make(tokenizer, share=0.5)(data)])
    masked = {
        i
        for i, row in enumerate(data)
        if contract.word(SEED, 0, 11, contract.row_hash(dict(enumerate(row["input_ids"]))), 0)
        < contract.T(0.5)
    }
    assert 0 < len(masked) < len(data)
    for i, row in enumerate(data):
        assert found[i] == (expected[0][i] if i in masked else row["input_ids"])
    assert rows_of([make(tokenizer, share=0)(data)]) == {
        i: row["input_ids"] for i, row in enumerate(data)
    }


def test_a_budget_is_exact_in_the_rows_that_are_masked(tokenizer, data):
    for row in rows_of([make(tokenizer, rate=0.25, selection="budget", share=0.5)(data)]).items():
        maskable = len(row[1]) - 2
        assert row[1].count(MASK) in (0, int(maskable * 0.25 + 0.5))


def test_keywords_keep_their_rates_in_the_rows_that_are_masked(tokenizer, data):
    column = maskft.strategy.WEIGHT_COLUMN
    rows = [{**row, column: [1.0] * len(row["input_ids"])} for row in data]
    whole = rows_of([make(tokenizer, strategy="keyword")(rows)])
    half = rows_of([make(tokenizer, strategy="keyword", share=0.5)(rows)])
    assert all(half[i] in (whole[i], data[i]["input_ids"]) for i in half)
    assert half not in (whole, rows_of([DataCollatorWithPadding(tokenizer)(data)]))
    with pytest.raises(ValueError, match="Keyword gives tokens rates of their own"):
        make(tokenizer, rate="uniform", strategy="keyword")(rows)


def test_only_the_question_is_masked(tokenizer):
    rows = [dict(tokenizer(*pair)) for pair in zip(CORPUS[:3], CORPUS[2:5], strict=True)]
    for row in rows:
        row["question"] = [1 - kind for kind in row["token_type_ids"]]
    plain = [{k: v for k, v in row.items() if k != "question"} for row in rows]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        by_type = make(tokenizer, rate=1.0, mask_only=0)(plain)
        by_column = make(tokenizer, rate=1.0, mask_only="question")(rows)
        for name in by_type:
            assert torch.equal(by_type[name], by_column[name])
        masked = by_type["input_ids"] == MASK
        special = torch.isin(DataCollatorWithPadding(tokenizer)(plain)["input_ids"],
                             torch.tensor(tokenizer.all_special_ids))  # fmt: skip
        assert torch.equal(masked, (by_type["token_type_ids"] == 0) & ~special)


def test_words_are_masked_whole_by_word_ids(tokenizer):
    encoded = [tokenizer(text) for text in CORPUS[:5]]
    rows = [{**each, "word_ids": each.word_ids()} for each in encoded]
    batch = make(tokenizer, strategy="whole_word", rate=0.5)(rows)
    assert "word_ids" not in batch
    for ids, each in zip(batch["input_ids"], encoded, strict=True):
        for word in {*each.word_ids()} - {None}:
            hidden = {ids[t].item() == MASK for t, w in enumerate(each.word_ids()) if w == word}
            assert len(hidden) == 1


def test_other_shares_replace_by_random_tokens_too(tokenizer, data):
    batch = make(tokenizer, rate=1.0, mask_replace_prob=0.5, random_replace_prob=0.5)(data)
    plain = DataCollatorWithPadding(tokenizer)(data)
    changed = batch["input_ids"] != plain["input_ids"]
    assert 0 < (batch["input_ids"][changed] == MASK).sum() < changed.sum()


def test_a_schedule_changes_the_rate(tokenizer, data):
    collator = make(tokenizer, schedule=RateSchedule("linear", 1.0, 0.0))
    counts = []
    for step in (0, 5, 10):
        collator.set_progress(step, 10)
        counts.append(int((collator(data)["input_ids"] == MASK).sum()))
    assert counts[0] > counts[1] > counts[2] == 0


def test_stream_gives_other_masks_at_every_call_and_repeats_with_a_seed(tokenizer, data):
    def three(seed):
        collator = make(tokenizer, rng="stream", seed=seed)
        return [collator(data)["input_ids"].tolist() for _ in range(3)]

    first = three(1)
    assert first == three(1) != three(2)
    assert first[0] != first[1] != first[2]


@pytest.mark.parametrize("options", [{}, {"rate": "uniform", "share": 0.6}, {"mask_only": 0}])
def test_masked_on_the_device_as_in_the_loader(tokenizer, data, options):
    rows = [{**row, "small": np.int32(row["number"])} for row in data]
    collator = make(tokenizer, **options)
    unmasked = UnmaskedCollator(collator)(rows)
    assert unmasked["input_ids"].dtype == torch.int32
    assert not (unmasked["input_ids"] == MASK).any()
    batch, expected = mask_batch(unmasked, collator), collator(rows)
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(batch[name], value), name
        assert batch[name].dtype == value.dtype, name
    assert mask_batch(expected, collator)["input_ids"] is expected["input_ids"]


BAD = [
    (lambda t: MaskInputs(3), TypeError, "collator must be a function"),
    (lambda t: MaskInputs(lambda rows: rows), ValueError, "give it tokenizer="),
    (lambda t: make(t, maskft.DataCollatorForLanguageModeling(t)), ValueError, "masks already"),
    (lambda t: make(t, DataCollatorForLanguageModeling(t)), ValueError, "masks already"),
    (lambda t: make(t, make(t)), ValueError, "masks already"),
    (lambda t: make(t, rate="often"), ValueError, "'uniform', got 'often'"),
    (lambda t: make(t, rate=1.5), ValueError, "rate must be between 0 and 1, got 1.5"),
    (lambda t: make(t, rate=True), TypeError, "rate must be a number"),
    (lambda t: make(t, rate=float("nan")), ValueError, "rate must be between"),
    (lambda t: make(t, share=-0.1), ValueError, "share must be between"),
    (lambda t: make(t, share=None), TypeError, "share must be a number"),
    (lambda t: make(t, rng="hf"), ValueError, "rng must be one of"),
    (lambda t: make(t, selection="all"), ValueError, "selection must be one of"),
    (
        lambda t: make(t, rate="uniform", schedule=RateSchedule("constant", 0.1, 0.1)),
        ValueError,
        "takes no schedule",
    ),
]


@pytest.mark.parametrize(("build", "error", "words"), BAD, ids=[words for _, _, words in BAD])
def test_arguments_that_do_not_fit_are_refused(tokenizer, build, error, words):
    with pytest.raises(error, match=words):
        build(tokenizer)


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer):
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match=r"has no mask token: .*add_special_tokens"):
        make(tokenizer)


def _lists(rows):
    return {"input_ids": [row["input_ids"] for row in rows]}


def _arrays(rows):
    return {"input_ids": np.array([row["input_ids"] for row in rows])}


def _floats(rows):
    return {"input_ids": torch.ones(2, 3)}


def _choices(rows):
    return {"input_ids": torch.ones(2, 3, 4, dtype=torch.int64)}


BATCHES = [
    (lambda rows: {"inputs_embeds": 1}, ValueError, r"no 'input_ids' to mask; it has \['inputs_e"),
    (_lists, TypeError, "return input_ids as a torch.Tensor, got list.*return_tensors='pt'"),
    (_arrays, TypeError, "got ndarray"),
    (_floats, TypeError, r"int32 or int64 \[B, T\], got torch.float32"),
    (_choices, TypeError, r"got torch.int64 \[2, 3, 4\]"),
    (lambda rows: rows, TypeError, "must return a mapping, got list"),
]


@pytest.mark.parametrize(("inner", "error", "words"), BATCHES, ids=[w for _, _, w in BATCHES])
def test_batches_that_cannot_be_masked_are_refused(tokenizer, data, inner, error, words):
    with pytest.raises(error, match=words):
        make(tokenizer, inner, tokenizer=tokenizer)([data[0], data[0]])


def test_missing_columns_are_refused_with_those_there_are(tokenizer, data):
    with pytest.raises(ValueError, match=r"no column 'question'; it has .*'labels'"):
        make(tokenizer, mask_only="question")(data)
    with pytest.raises(ValueError, match="no column 'row'"):
        make(tokenizer, sample_id_column="row")(data)
    rows = [{"input_ids": row["input_ids"]} for row in data]
    with pytest.raises(ValueError, match="needs a token_type_ids column"):
        make(tokenizer, mask_only=1)(rows)
    with pytest.raises(ValueError, match=r"reads \['question'\] here.*got str"):
        make(tokenizer, mask_only="question")(CORPUS)


def test_columns_that_do_not_line_up_are_refused(tokenizer, data):
    rows = [{**row, "question": [1] * len(row["input_ids"])} for row in data]

    def shortened(rows):
        return DataCollatorWithPadding(tokenizer)(
            [{k: v[:5] for k, v in row.items() if isinstance(v, list)} for row in rows]
        )

    with pytest.raises(ValueError, match="question cannot be lined up with the batch"):
        make(tokenizer, shortened, tokenizer=tokenizer, mask_only="question")(rows)
    rows[2]["question"] = [1]
    with pytest.raises(ValueError, match=r"example 2 has .* input_ids but 1 entries in 'question'"):
        make(tokenizer, mask_only="question")(rows)


def test_padding_without_an_attention_mask_is_found_or_refused(tokenizer, data, expected):
    padded = DataCollatorWithPadding(tokenizer)

    def without(rows):
        batch = padded(rows)
        return {name: batch[name] for name in ("input_ids", "number")}

    collator = make(tokenizer, without, tokenizer=tokenizer)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = collator(data)
        real = batch["input_ids"] != tokenizer.pad_token_id
        assert rows_of([{**batch, "attention_mask": real}]) == expected[0]

    def of_texts(texts):
        return {"input_ids": padded([tokenizer(text) for text in texts])["input_ids"]}

    from_texts = make(tokenizer, of_texts, tokenizer=tokenizer)
    assert from_texts(CORPUS[:1])["input_ids"].tolist() == [expected[0][0]]
    with pytest.raises(ValueError, match="pad tokens and no attention_mask"):
        from_texts(CORPUS[:5])


def test_rows_made_of_several_need_no_ids_of_examples(tokenizer, data, expected):
    """A collator that makes more rows than there are examples, as for pairs."""
    padded = DataCollatorWithPadding(tokenizer)

    def twice(rows):
        return padded([*rows, *rows])

    batch = make(tokenizer, twice, tokenizer=tokenizer)(data)
    assert rows_of([batch]) == expected[0]
    with pytest.raises(ValueError, match="has 20 ids, and the collator's batch has 40 rows"):
        make(tokenizer, twice, tokenizer=tokenizer, sample_id_column="number")(data)


def test_a_special_tokens_mask_is_read_and_left_out(tokenizer, data):
    rows = [{**row, "special_tokens_mask": [1] * len(row["input_ids"])} for row in data]
    for row in rows[1:]:
        row["special_tokens_mask"] = [0] * len(row["input_ids"])
    batch = make(tokenizer, rate=1.0)(rows)
    assert "special_tokens_mask" not in batch
    masked = batch["input_ids"] == MASK
    assert not masked[0].any()
    assert masked[1:].any(1).all()


def test_examples_may_be_empty_only_if_the_collator_says_so(tokenizer):
    with pytest.raises(ValueError, match="needs examples that are mappings, got none"):
        make(tokenizer, mask_only="question")([])
