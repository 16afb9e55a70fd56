"""Masking after the loader: the same bits, the same training, and Trainer's count of labels."""

import copy

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from torch.utils.data import DataLoader

from maskft import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPacking,
    UnmaskedCollator,
    attach,
    detach,
    mask_batch,
)
from maskft.collate.columns import UnmaskedBatch
from maskft.strategy import Entity, Tokens
from maskkernels import mask_tokens
from tests.support.trainers import Rows, Stream, build

pytestmark = pytest.mark.slow


def same(batch, expected):
    """Equal keys, dtypes and values."""
    assert set(batch) == set(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert batch[name].dtype == value.dtype, name
            assert torch.equal(batch[name], value), name
        else:
            assert batch[name] == value, name


def collators(tokenizer, **options):
    options = {"rng": "sample", "seed": 3, "mlm_probability": 0.4} | options
    return DataCollatorForLanguageModeling(tokenizer, **options)


@pytest.mark.parametrize("strategy", ["random", "whole_word"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("multiple", [None, 8])
def test_masks_are_those_of_the_collator(tokenizer, rows, strategy, side, dtype, multiple):
    tokenizer.padding_side = side
    collator = collators(tokenizer, strategy=strategy, pad_to_multiple_of=multiple)
    plain = UnmaskedCollator(collator, dtype)
    for epoch in range(3):
        collator.set_epoch(epoch)
        batch = plain(rows)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert batch[name].dtype == dtype
        assert "labels" not in batch
        kept = copy.deepcopy(batch)
        same(mask_batch(batch, collator), collator(rows))
        same(batch["masking"], kept["masking"])
        assert torch.equal(batch["input_ids"], kept["input_ids"])  # not written to


def test_the_epoch_is_that_of_masking(tokenizer, rows):
    """A batch that was loaded ahead is masked as of now."""
    collator = collators(tokenizer)
    batch = UnmaskedCollator(collator)(rows)
    collator.set_epoch(9)
    same(mask_batch(batch, collator), collator(rows))


@pytest.mark.parametrize(
    "extra", ["special_tokens_mask", "offset_mapping", "word_ids", "row", "no attention mask"]
)
def test_columns_that_masks_depend_on_come_along(tokenizer, extra):
    texts = ["internationalisation predicts masked words", "a fox", "antidisestablishmentarianism"]
    encoded = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    encoded["word_ids"] = [encoded.word_ids(i) for i in range(len(texts))]
    encoded["row"] = [2**63 + i for i in range(len(texts))]  # needs all 64 bits
    encoded["special_tokens_mask"] = [[int(i % 3 == 0) for i in range(len(row))]
                                      for row in encoded["input_ids"]]  # fmt: skip
    names = ["input_ids", "attention_mask", extra]
    if extra == "no attention mask":
        tokenizer.model_input_names = names = ["input_ids"]
    rows = [{name: encoded[name][i] for name in names} for i in range(len(texts))]
    words = extra in ("offset_mapping", "word_ids")
    collator = collators(
        tokenizer,
        strategy="whole_word" if words else "random",
        sample_id_column="row" if extra == "row" else None,
    )
    expected = collator(rows)
    same(mask_batch(UnmaskedCollator(collator)(rows), collator), expected)
    if not words:
        without = [{name: row[name] for name in ("input_ids",)} for row in rows]
        plain = DataCollatorForLanguageModeling(
            tokenizer, rng="sample", seed=3, mlm_probability=0.4
        )
        differs = not torch.equal(plain(without)["labels"], expected["labels"])
        assert differs == (extra in ("special_tokens_mask", "row"))


def test_a_plain_padded_batch_is_enough(tokenizer, rows):
    """What any other loader pads."""
    collator = collators(tokenizer)
    padded = dict(tokenizer.pad(rows, return_tensors="pt"))
    same(mask_batch(padded, collator), collator(rows))
    narrow = {name: value.int() for name, value in padded.items()}
    same(mask_batch(narrow, collator), collator(rows))
    named = collators(tokenizer, sample_id_column="row")
    with_ids = [{**row, "row": 7 + i} for i, row in enumerate(rows)]
    padded["row"] = torch.arange(7, 7 + len(rows))
    same(mask_batch(padded, named), named(with_ids))


def test_a_batch_that_is_masked_stays_as_it_is(tokenizer, rows):
    collator = collators(tokenizer)
    batch = collator(rows)
    same(mask_batch(batch, collator), batch)


@pytest.mark.parametrize("attention", ["varlen", "block_diagonal", "padded"])
@pytest.mark.parametrize("strategy", ["random", "whole_word"])
@pytest.mark.parametrize("total_length", [None, 320])
def test_packed_batches_are_masked_there_too(tokenizer, rows, attention, strategy, total_length):
    collator = DataCollatorWithPacking(
        tokenizer, attention=attention, rng="sample", seed=3, strategy=strategy,
        total_length=total_length, mlm_probability=0.4,
    )  # fmt: skip
    batch = UnmaskedCollator(collator)(rows)
    assert batch["input_ids"].dtype == torch.int32
    same(mask_batch(batch, collator), collator(rows))


def test_a_stream_goes_on_with_every_batch(tokenizer, rows):
    collator, other = (collators(tokenizer, rng="stream") for _ in range(2))
    plain = UnmaskedCollator(collator)
    for _ in range(3):
        same(mask_batch(plain(rows), collator), other(rows))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_pad_and_this_process_masks(tokenizer, rows, method):
    collator = collators(tokenizer)
    loader = DataLoader(
        rows, batch_size=6, collate_fn=UnmaskedCollator(collator), num_workers=2,
        persistent_workers=True, multiprocessing_context=method,
    )  # fmt: skip
    for epoch in range(2):
        collator.set_epoch(epoch)
        for step, batch in enumerate(loader):
            expected = collator(rows[6 * step : 6 * step + 6])
            same(mask_batch(batch, collator), expected)


def test_accelerate_hands_over_everything(tokenizer, rows):
    """A loader that Accelerate prepares moves what masking needs too."""
    collator = collators(tokenizer, sample_id_column="row", strategy="whole_word")
    rows = [{**row, "row": i} for i, row in enumerate(rows)]
    loader = Accelerator(cpu=True).prepare(
        DataLoader(Rows(rows), batch_size=5, collate_fn=UnmaskedCollator(collator))
    )
    for step, batch in enumerate(loader):
        same(mask_batch(batch, collator), collator(rows[5 * step : 5 * step + 5]))


def test_a_collator_that_masks_in_its_own_way_is_called(tokenizer, rows):
    class All(DataCollatorForLanguageModeling):
        def torch_mask_tokens(self, inputs, special_tokens_mask=None, offset_mapping=None):
            return torch.full_like(inputs, 4), inputs

    collator = All(tokenizer, rng="sample")
    same(mask_batch(UnmaskedCollator(collator)(rows), collator), collator(rows))


# --- Trainer --------------------------------------------------------------------------------------


def losses_and_weights(tiny_bert, trainer):
    trainer.train()
    history = trainer.state.log_history
    losses = [log["loss"] for log in history if "loss" in log]
    evaluations = [log["eval_loss"] for log in history if "eval_loss" in log]
    return losses, evaluations, {k: v.clone() for k, v in tiny_bert.state_dict().items()}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_training_is_that_of_masks_from_the_loader(
    tiny_bert, tokenizer, rows, tmp_path, packed, accumulation
):
    """The same losses and weights, to the last digit, and the same count of labels."""
    start = {k: v.clone() for k, v in tiny_bert.state_dict().items()}
    results, counts = [], []
    for on_device in (False, True):
        tiny_bert.load_state_dict(start)
        kind = {"attention": "block_diagonal"} if packed else {}
        make = DataCollatorWithPacking if packed else DataCollatorForLanguageModeling
        collator = make(tokenizer, rng="sample", seed=5, **kind)
        trainer = build(
            tiny_bert, tokenizer, rows, tmp_path / str(on_device), collator, logging_steps=1,
            logging_strategy="steps", gradient_accumulation_steps=accumulation,
            eval_strategy="epoch", per_device_train_batch_size=3,
        )  # fmt: skip
        attach(trainer, mask_on_device=on_device)
        counted = trainer._get_num_items_in_batch
        seen = []

        def count(batches, device, counted=counted, seen=seen):
            seen.append(int(sum((batch["labels"] != -100).sum() for batch in batches)))
            return counted(batches, device)

        trainer._get_num_items_in_batch = count
        results.append(losses_and_weights(tiny_bert, trainer))
        counts.append(seen)
    (losses, evaluations, weights), (others, other_evaluations, other_weights) = results
    assert len(losses) == 2 * -(-len(rows) // (3 * accumulation))
    assert losses == others
    assert evaluations == other_evaluations
    assert counts[0] == counts[1]
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_the_loader_only_pads(tiny_bert, tokenizer, rows, tmp_path):
    trainer = attach(
        build(tiny_bert, tokenizer, rows, tmp_path, collators(tokenizer)), mask_on_device=True
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].dtype == torch.int32
    assert "labels" not in batch
    assert "labels" in next(iter(trainer.get_eval_dataloader()))
    assert isinstance(trainer.data_collator, DataCollatorForLanguageModeling)


def test_a_stream_of_rows_and_workers_train(tiny_bert, tokenizer, rows, tmp_path):
    trainer = build(
        tiny_bert, tokenizer, Stream(rows), tmp_path, collators(tokenizer), max_steps=5,
        logging_steps=1, logging_strategy="steps", dataloader_num_workers=1,
    )  # fmt: skip
    attach(trainer, mask_on_device=True).train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 5
    assert np.isfinite(losses).all()


def test_detach_undoes_it(tiny_bert, tokenizer, rows, tmp_path):
    trainer = build(tiny_bert, tokenizer, rows, tmp_path, collators(tokenizer))
    before = trainer.get_batch_samples
    attach(trainer, mask_on_device=True)
    assert trainer.get_batch_samples != before
    detach(trainer)
    assert trainer.get_batch_samples == before
    assert "labels" in next(iter(trainer.get_train_dataloader()))
    trainer.train()


# --- bad input ------------------------------------------------------------------------------------


def test_what_cannot_be_masked_on_the_device_is_refused(tokenizer, rows, tiny_bert, tmp_path):
    for collator, message in (
        (DataCollatorForLanguageModeling(tokenizer, rng="hf"), "does not go with rng='hf'"),
        (DataCollatorForLanguageModeling(tokenizer, mlm=False), "does not go with mlm=False"),
    ):
        with pytest.raises(ValueError, match=message):
            UnmaskedCollator(collator)
        with pytest.raises(ValueError, match=message):
            mask_batch({"input_ids": torch.zeros(1, 2).long()}, collator)
        trainer = build(tiny_bert, tokenizer, rows, tmp_path, collator)
        with pytest.raises(ValueError, match=message):
            attach(trainer, mask_on_device=True)
        assert "get_eval_dataloader" not in vars(trainer)  # nothing half done
    stock = transformers.DataCollatorForLanguageModeling(tokenizer)
    with pytest.raises(TypeError, match=r"needs a maskft\.DataCollator.*got DataCollator"):
        UnmaskedCollator(stock)
    collator = collators(tokenizer)
    with pytest.raises(TypeError, match=r"torch\.int32 or torch\.int64, got torch\.int16"):
        UnmaskedCollator(collator, torch.int16)
    with pytest.raises(TypeError, match="batch must be a mapping, got Tensor"):
        mask_batch(torch.zeros(1, 2), collator)
    with pytest.raises(ValueError, match=r"no 'input_ids'; it has \['ids'\]"):
        mask_batch({"ids": torch.zeros(1, 2)}, collator)
    with pytest.raises(TypeError, match="input_ids must be int32 or int64"):
        mask_batch({"input_ids": torch.zeros(1, 2)}, collator)


def annotated(rows):
    return [
        {
            **row,
            "entity_ids": [-1 if i % 7 < 4 else i // 7 for i in range(len(row["input_ids"]))],
            "keyword_weights": [1.0 + i % 3 for i in range(len(row["input_ids"]))],
        }
        for row in rows
    ]


@pytest.mark.parametrize("selection", ["bernoulli", "budget"])
@pytest.mark.parametrize("strategy", ["span", "entity", "keyword", Entity(rate=0.7)])
@pytest.mark.parametrize("mask_only", [None, 0])
def test_every_strategy_masks_on_the_device_as_in_the_loader(
    tokenizer, rows, strategy, mask_only, selection
):
    rows = annotated(rows)
    collator = DataCollatorForLanguageModeling(
        tokenizer,
        rng="sample",
        seed=2,
        strategy=strategy,
        mask_only=mask_only,
        selection=selection,
        mlm_probability=0.4,
    )
    expected = collator([dict(row) for row in rows])
    found = mask_batch(UnmaskedCollator(collator)([dict(row) for row in rows]), collator)
    assert (found["labels"] != -100).any()
    for name in ("input_ids", "labels"):
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("strategy", ["random", "whole_word", "span", "ngram", "entity", "keyword"])
def test_planning_and_masking_compile_as_one_graph(tokenizer, rows, strategy):
    """What a collator does on the device once its settings are known."""
    collator = collators(tokenizer, strategy=strategy)
    batch = UnmaskedCollator(collator)(annotated(rows))
    ids, real = batch["input_ids"], batch["attention_mask"]
    vocabulary = collator._vocabulary_for(ids, UnmaskedBatch({}))
    policy = collator._masking_policy(0.4)
    table, where = vocabulary.words, {"maskable": vocabulary.maskable}

    def step(ids, real, columns):
        limits = {**where, "attention_mask": real}
        tokens = Tokens(ids, 0.4, 3, 0, columns, word_table=lambda: table, **limits)
        plan = collator._strategy.plan(tokens)
        limits["sample_ids"] = tokens.given_sample_ids
        return mask_tokens(ids, policy, seed=3, units=plan.units, rates=plan.rates, **limits)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = compiled(ids, real, batch["masking"].get("columns", {}))
    expected = mask_batch(batch, collator)
    assert torch.equal(found.input_ids.long(), expected["input_ids"])
    assert torch.equal(found.labels.long(), expected["labels"])


@pytest.mark.parametrize(
    "form",
    [
        lambda mask: mask.numpy(),
        lambda mask: mask.tolist(),
        lambda mask: mask.bool(),
        lambda mask: mask.int(),
        lambda mask: mask[:, None],
        lambda mask: mask[:, None, None],
    ],
    ids=["array", "list", "bool", "int32", "[B, 1, T]", "[B, 1, 1, T]"],
)
def test_an_attention_mask_counts_in_every_form(tokenizer, rows, form):
    tokenizer.padding_side = "left"
    collator = collators(tokenizer)
    padded = tokenizer.pad(rows, return_tensors="pt")
    expected = collator(rows)["labels"]
    batch = {**padded, "attention_mask": form(padded["attention_mask"])}
    assert torch.equal(mask_batch(batch, collator)["labels"], expected)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (lambda mask: mask[:, :-1], "got torch.int64 of shape"),
        (lambda mask: mask[:, None, :, None] * mask[:, None, None], r"shape \(\d+, 1, \d+, \d+\)"),
        (lambda mask: (1.0 - mask[:, None, None].float()) * -1e9, "got torch.float32 of shape"),
        (lambda mask: "all", "attention_mask must be a tensor, got str"),
        (lambda mask: [[1], [1, 1]], "attention_mask must be a tensor, got list"),
    ],
    ids=["short", "matrix", "additive", "text", "ragged"],
)
def test_an_attention_mask_that_does_not_say_what_is_real_is_refused(tokenizer, rows, form, text):
    padded = tokenizer.pad(rows, return_tensors="pt")
    batch = {**padded, "attention_mask": form(padded["attention_mask"])}
    with pytest.raises((TypeError, ValueError), match=text):
        mask_batch(batch, collators(tokenizer))
    batch["masking"] = {"attention_mask": padded["attention_mask"]}
    expected = mask_batch(padded, collators(tokenizer))["labels"]
    assert torch.equal(mask_batch(batch, collators(tokenizer))["labels"], expected)


def test_ids_that_are_no_tensor_are_refused(tokenizer):
    with pytest.raises(TypeError, match=r"input_ids must be a tensor \[B, T\], got list"):
        mask_batch({"input_ids": [[2, 40, 3]]}, collators(tokenizer))


def test_float_attention_masks_of_rows_reach_the_device(tokenizer, rows):
    """Rows with masks that Transformers pads in its own way."""
    given = [{**row, "attention_mask": [1.0] * len(row["input_ids"])} for row in rows]
    collator = collators(tokenizer)
    batch = UnmaskedCollator(collator)(given)
    assert torch.equal(mask_batch(batch, collator)["labels"], collator(given)["labels"])
