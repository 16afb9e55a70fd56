"""Packing in a Trainer by one argument: the losses and masks of the padded batches."""

import os
import socket
import subprocess
import sys

import datasets
import pytest
import torch

from maskft import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPacking,
    RateSchedule,
    attach,
    detach,
)
from maskft.trainer import packing as packed_trainer
from maskft.trainer.packing import row_lengths
from tests.support.packed import BLOCK, TEXTS, build, rows_of
from tests.support.trainers import Rows

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(tokenizer):
    return [dict(tokenizer(text)) for text in TEXTS]


def as_padded(monkeypatch):
    """Have packing fall back on padding: the same rows in every batch."""
    monkeypatch.setattr(
        DataCollatorWithPacking, "for_model",
        classmethod(lambda cls, model, tokenizer, **o: cls(tokenizer, attention="padded", **o)),
    )  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_trains_as_the_padded_batches_do(
    tiny_bert, tokenizer, rows, tmp_path, monkeypatch, accumulation
):
    """The same rows with the same masks, losses and weights, and no padding."""
    options = {"gradient_accumulation_steps": accumulation}
    packed = build(tiny_bert, tokenizer, rows, tmp_path, **options)
    packed.train()
    as_padded(monkeypatch)
    padded = build(tiny_bert, tokenizer, rows, tmp_path, **options)
    padded.train()
    assert len(packed.batches) == len(padded.batches) > 10
    for one, other in zip(packed.batches, padded.batches, strict=True):
        assert one["input_ids"].shape[0] == 1
        assert one["input_ids"].numel() <= BLOCK
        assert one["input_ids"].numel() == other["attention_mask"].sum()
        assert rows_of(one) == rows_of(other)
    losses = [[h["loss"] for h in t.state.log_history if "loss" in h] for t in (packed, padded)]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=0)
    for p, q in zip(packed.model.parameters(), padded.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    epoch = sum(len(row["input_ids"]) for row in rows)
    assert abs(packed.state.num_input_tokens_seen - 2 * epoch) <= 4  # a random id may be [PAD]
    assert padded.state.num_input_tokens_seen == 2 * epoch
    steps = -(-len(packed.batches) // 2 // accumulation)
    assert packed.state.global_step == 2 * steps


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_row_is_trained_on_once_an_epoch(tiny_bert, tokenizer, rows, tmp_path, accumulation):
    trainer = build(
        tiny_bert, tokenizer, rows, tmp_path, gradient_accumulation_steps=accumulation,
        num_train_epochs=3,
    )  # fmt: skip
    trainer.train()
    blocks = len(trainer.get_train_dataloader())
    assert len(trainer.batches) == 3 * blocks
    epochs = [trainer.batches[e * blocks : (e + 1) * blocks] for e in range(3)]
    whole = sorted(tuple(row["input_ids"]) for row in rows)
    for batches in epochs:
        seen = [
            tuple(b if b != -100 else a for a, b in zip(*row, strict=True))
            for batch in batches
            for row in rows_of(batch)
        ]
        assert sorted(seen) == whole
    assert [rows_of(b) for b in epochs[0]] != [rows_of(b) for b in epochs[1]]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_goes_on_as_the_whole_run(tiny_bert, tokenizer, rows, tmp_path, accumulation):
    """Interrupted in the second epoch, where blocks have other rows than in the first."""
    options = {
        "save_strategy": "steps", "save_steps": 8, "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 3,
    }  # fmt: skip
    whole = build(tiny_bert, tokenizer, rows, tmp_path / "whole", **options)
    whole.train()
    resumed = build(tiny_bert, tokenizer, rows, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    rest = whole.batches[8 * accumulation :]
    if accumulation == 2:  # the last update of an epoch may have one batch only
        rest = whole.batches[-len(resumed.batches) :]
    assert 0 < len(resumed.batches) < len(whole.batches)
    assert [rows_of(b) for b in resumed.batches] == [rows_of(b) for b in rest]
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_workers_and_datasets_make_the_same_batches(tiny_bert, tokenizer, rows, tmp_path):
    alone = build(tiny_bert, tokenizer, rows, tmp_path)
    alone.train()
    table = datasets.Dataset.from_list([{**row, "text": "left out by Trainer"} for row in rows])
    for workers, persistent in ((2, False), (1, True)):
        trainer = build(
            tiny_bert, tokenizer, table, tmp_path, dataloader_num_workers=workers,
            dataloader_persistent_workers=persistent,
        )  # fmt: skip
        trainer.train()
        assert len(trainer.batches) == len(alone.batches)
        for one, other in zip(trainer.batches, alone.batches, strict=True):
            assert torch.equal(one["labels"], other["labels"])
            assert torch.equal(one["input_ids"], other["input_ids"])


def test_masking_on_the_device_makes_the_same_batches(tiny_bert, tokenizer, rows, tmp_path):
    alone = build(tiny_bert, tokenizer, rows, tmp_path)
    alone.train()
    trainer = build(tiny_bert, tokenizer, rows, tmp_path, mask_on_device=True)
    trainer.train()
    for one, other in zip(trainer.batches, alone.batches, strict=True):
        assert torch.equal(one["labels"], other["labels"])
        assert torch.equal(one["input_ids"], other["input_ids"])


def test_evaluation_is_padded_as_ever(tiny_bert, tokenizer, rows, tmp_path):
    packed = build(tiny_bert, tokenizer, rows, tmp_path, eval_strategy="epoch")
    packed.train()
    losses = [log["eval_loss"] for log in packed.state.log_history if "eval_loss" in log]
    assert len(losses) == 2
    assert packed.evaluate()["eval_loss"] == losses[-1]
    batch = next(iter(packed.get_eval_dataloader()))
    assert batch["attention_mask"].shape == batch["input_ids"].shape
    assert batch["input_ids"].shape[0] == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_rates_follow_a_schedule(tiny_bert, tokenizer, rows, tmp_path, workers):
    schedule = RateSchedule("steps", steps=((0.0, 0.5), (0.5, 0.0)))
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", schedule=schedule)
    trainer = build(
        tiny_bert, tokenizer, rows, tmp_path, collator, gradient_accumulation_steps=2,
        dataloader_num_workers=workers,
    )  # fmt: skip
    trainer.train()
    masked = [bool((batch["labels"] != -100).any()) for batch in trainer.batches]
    assert masked == sorted(masked, reverse=True)
    half = sum(masked) / len(masked)
    assert 0.4 <= half <= 0.6


def test_a_model_that_cannot_be_packed_is_padded(tokenizer, rows, tmp_path, caplog):
    from tests.support.tiny import tiny_model

    model = tiny_model("masked", "convbert")
    model.resize_token_embeddings(len(tokenizer))
    trainer = build(model, tokenizer, rows, tmp_path, num_train_epochs=1)
    assert "cannot keep packed rows apart" in caplog.text
    trainer.train()
    assert all(b["attention_mask"].shape == b["input_ids"].shape for b in trainer.batches)
    assert all(int(b["attention_mask"].sum()) <= BLOCK for b in trainer.batches)


def test_true_is_the_size_of_the_padded_batch(tiny_bert, tokenizer, rows, tmp_path):
    trainer = build(tiny_bert, tokenizer, rows, tmp_path, packing=True)
    longest = max(len(row["input_ids"]) for row in rows)
    sampler = trainer.get_train_dataloader().batch_sampler
    assert sampler.block_size == 4 * longest


def test_detach_pads_again(tiny_bert, tokenizer, rows, tmp_path):
    trainer = detach(build(tiny_bert, tokenizer, rows, tmp_path))
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 4
    assert not set(packed_trainer.PACKED) & set(vars(trainer))


def test_whole_words_keep_the_shares_they_have(tiny_bert, tokenizer, rows, tmp_path):
    collator = DataCollatorForLanguageModeling(
        tokenizer, rng="sample", strategy="whole_word", mask_replace_prob=0.5
    )
    trainer = build(tiny_bert, tokenizer, rows, tmp_path, collator)
    packing = trainer.get_train_dataloader().collate_fn.data_collator
    assert (packing.strategy, packing.mask_replace_prob) == ("whole_word", 0.5)
    assert packing.whole_word_mask


def test_what_cannot_be_packed_is_refused(tiny_bert, tokenizer, rows, tmp_path, monkeypatch):
    class Own(DataCollatorForLanguageModeling):
        pass

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows)

    def refused(error, match, **options):
        with pytest.raises(error, match=match):
            build(tiny_bert, tokenizer, **{"rows": rows, "path": tmp_path, **options})

    refused(ValueError, "packing must be True or a positive number", packing=0)
    refused(ValueError, "rng='hf' draws", collator=DataCollatorForLanguageModeling(
        tokenizer, rng="hf", seed=1))  # fmt: skip
    refused(TypeError, "packing needs a maskft.DataCollator", collator=Own(tokenizer))
    trainer = detach(build(tiny_bert, tokenizer, rows, tmp_path))
    trainer.train_dataset = Stream()
    with pytest.raises(TypeError, match="training dataset with a length, got Stream"):
        attach(trainer, packing=BLOCK)
    assert "_get_dataloader" not in vars(trainer)
    hf = DataCollatorForLanguageModeling(tokenizer, rng="hf", seed=1)
    trainer.train_dataset, trainer.data_collator = Rows(rows), hf
    as_padded(monkeypatch)  # which takes rng="hf", unlike masking on the device
    with pytest.raises(ValueError, match="masking on the device does not go with"):
        attach(trainer, packing=BLOCK, mask_on_device=True)
    assert "_get_dataloader" not in vars(trainer)
    monkeypatch.undo()
    trainer = build(tiny_bert, tokenizer, rows, tmp_path, packing=8)
    with pytest.raises(ValueError, match=r"row \d+ has \d+ tokens, a block holds 8"):
        trainer.train()


def test_lengths_of_any_dataset(rows):
    expected = [len(row["input_ids"]) for row in rows]
    table = datasets.Dataset.from_list(rows)
    reverse = list(reversed(range(len(rows))))
    assert row_lengths(Rows(rows)).tolist() == expected
    assert row_lengths(Rows([row["input_ids"] for row in rows])).tolist() == expected
    assert row_lengths(table).tolist() == expected
    assert row_lengths(table.with_format("torch")).tolist() == expected
    assert row_lengths(table.select(reverse)).tolist() == expected[::-1]
    halved = table.with_transform(lambda rows: {"input_ids": [r[:4] for r in rows["input_ids"]]})
    assert row_lengths(halved).tolist() == [4] * len(rows)


def test_two_ranks_share_the_blocks(tiny_bert, tokenizer, rows, tmp_path):
    """Each trains on its own; resumed in the second epoch, on the same ones."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.packed_ranks", str(tmp_path)],
            env=environment | {"RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in range(2)
    ]
    assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    whole, resumed = ([torch.load(tmp_path / f"{name}{r}.pt") for r in range(2)]
                      for name in ("whole", "resumed"))  # fmt: skip
    assert len(whole[0]["rows"]) == len(whole[1]["rows"])
    blocks = len(whole[0]["rows"]) // 3
    expected = sorted(tuple(row["input_ids"]) for row in rows)
    for epoch in range(3):
        part = slice(epoch * blocks, (epoch + 1) * blocks)
        seen = [row for rank in whole for batch in rank["rows"][part] for row in batch]
        distinct = {tuple(batch) for rank in whole for batch in rank["rows"][part]}
        assert sorted(seen) == expected or len(distinct) == 2 * blocks - 1  # one came again
        assert sorted({row for batch in distinct for row in batch}) == sorted(set(expected))
    for one, other in zip(whole, resumed, strict=True):
        assert one["rows"][-len(other["rows"]) :] == other["rows"]
        assert len(other["rows"]) < len(one["rows"])
        for p, q in zip(one["weights"], other["weights"], strict=True):
            assert torch.equal(p, q)
    assert all(map(torch.equal, whole[0]["weights"], whole[1]["weights"]))
