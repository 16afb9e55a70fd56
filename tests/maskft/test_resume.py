"""Training over a stream, interrupted and resumed: the batches and weights of the whole run."""

import itertools
import random

import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import Trainer

from maskft import DataCollatorForLanguageModeling, RateSchedule, attach
from tests.maskft.test_trainer import build


class Stream(IterableDataset):
    """Rows in another order in every epoch, dealt out among workers."""

    def __init__(self, rows):
        self.rows, self.epoch = rows, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        rows = list(self.rows)
        random.Random(self.epoch).shuffle(rows)
        worker = get_worker_info()
        return itertools.islice(
            iter(rows), worker.id if worker else 0, None, worker.num_workers if worker else 1
        )


class SizedStream(Stream):
    def __len__(self):
        return len(self.rows)


class Recording(Trainer):
    """Remembers what each step is trained on."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append(
            (self.state.global_step, inputs["input_ids"].clone(), inputs["labels"].clone())
        )
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.fixture
def train(tiny_bert, tokenizer, rows, tmp_path):
    """A function that trains the same model from the beginning, or from a checkpoint.

    It gives what each step saw, and the weights.
    """
    begin = {k: v.clone() for k, v in tiny_bert.state_dict().items()}

    def train(name, resume=None, stream=Stream, mask_on_device=False, **options):
        tiny_bert.load_state_dict(begin)
        collator = DataCollatorForLanguageModeling(
            tokenizer, rng="sample", seed=3, schedule=RateSchedule("linear", 0.9, 0.1)
        )
        options = {
            "per_device_train_batch_size": 4, "max_steps": 14, "save_strategy": "steps",
            "save_steps": 1, "num_train_epochs": 1,
        } | options  # fmt: skip
        trainer = build(tiny_bert, tokenizer, stream(rows), tmp_path / name, collator, **options)
        trainer.__class__, trainer.seen = Recording, []
        attach(trainer, mask_on_device=mask_on_device)
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        return trainer.seen, {k: v.clone() for k, v in tiny_bert.state_dict().items()}

    return train


def same(found, expected, step):
    """What a run resumed at ``step`` saw, and its weights, against the whole run's."""
    seen, weights = found
    rest = [batch for batch in expected[0] if batch[0] >= step]
    assert [batch[0] for batch in seen] == [batch[0] for batch in rest]
    for one, other in zip(seen, rest, strict=True):
        assert torch.equal(one[1], other[1]), f"step {one[0]} saw other tokens"
        assert torch.equal(one[2], other[2]), f"step {one[0]} had other masks"
    for name, value in expected[1].items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mask_on_device", [False, True])
@pytest.mark.parametrize("stream", [Stream, SizedStream])
def test_a_resumed_stream_goes_on_where_it_stood(train, workers, mask_on_device, stream):
    """In the first pass, at the end of one, and in the third, with the batches left over of passes
    that do not come out even with gradient accumulation."""
    options = {
        "dataloader_num_workers": workers, "gradient_accumulation_steps": 2, "stream": stream,
        "mask_on_device": mask_on_device,
    }  # fmt: skip
    whole = train("whole", **options)
    for step in (1, 2, 4, 7, 9):
        same(train(f"from {step}", f"whole/checkpoint-{step}", **options), whole, step)
