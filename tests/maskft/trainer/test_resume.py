"""Training over a stream, interrupted and resumed: the batches and weights of the whole run."""

import itertools
import json
import random

import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset, get_worker_info
from transformers import Trainer

from maskft import DataCollatorForLanguageModeling, RateSchedule, attach
from tests.maskft.trainer.test_trainer import build

SCHEDULE = RateSchedule("linear", 0.9, 0.1)


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


def record(model, tokenizer, rows, path, resume=None, mask_on_device=False, **options):
    """Train; what each step saw (step, input_ids, labels), and the weights at the end."""
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=3, schedule=SCHEDULE)
    options = {
        "per_device_train_batch_size": 4, "max_steps": 12, "save_strategy": "steps",
        "save_steps": 1, "num_train_epochs": 1,
    } | options  # fmt: skip
    trainer = build(model, tokenizer, rows, path, collator, **options)
    trainer.__class__, trainer.seen = Recording, []
    attach(trainer, mask_on_device=mask_on_device)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer.seen, {k: v.clone() for k, v in model.state_dict().items()}


@pytest.fixture
def train(tiny_bert, tokenizer, rows, tmp_path):
    """``record`` with one model, the same at the beginning, in a folder of this name."""
    begin = {k: v.clone() for k, v in tiny_bert.state_dict().items()}

    def train(name, resume=None, stream=Stream, **options):
        tiny_bert.load_state_dict(begin)
        resume = resume and tmp_path / resume
        return record(tiny_bert, tokenizer, stream(rows), tmp_path / name, resume, **options)

    return train


def same(found, expected, step, weights_too=True):
    """What a run resumed at ``step`` saw, and its weights, against the whole run's."""
    seen, weights = found
    rest = [batch for batch in expected[0] if batch[0] >= step]
    assert [batch[0] for batch in seen] == [batch[0] for batch in rest]
    for one, other in zip(seen, rest, strict=True):
        assert torch.equal(one[1], other[1]), f"step {one[0]} saw other tokens"
        assert torch.equal(one[2], other[2]), f"step {one[0]} had other masks"
    for name, value in expected[1].items() if weights_too else ():
        assert torch.equal(value, weights[name]), name


def shuffled(rows):
    """A stream of datasets' own."""
    return Dataset.from_list(rows).to_iterable_dataset(2).shuffle(seed=1, buffer_size=8)


@pytest.mark.parametrize(
    ("stream", "workers", "mask_on_device"),
    [
        (Stream, 0, False),
        (Stream, 0, True),
        (Stream, 2, False),
        (SizedStream, 0, False),  # Trainer knows where to go on; the rates are ours
        (SizedStream, 0, True),
        (shuffled, 2, False),
    ],
)
def test_a_resumed_stream_goes_on_where_it_stood(train, stream, workers, mask_on_device):
    """In the first pass, at the end of one, and once more in a later one.

    A pass leaves a batch over that does not fill an update: its gradient waits for the next pass.
    """
    options = {
        "dataloader_num_workers": workers, "gradient_accumulation_steps": 2, "stream": stream,
        "mask_on_device": mask_on_device,
    }  # fmt: skip
    whole = train("whole", **options)
    for step in (1, 4):
        same(train(f"from {step}", f"whole/checkpoint-{step}", **options), whole, step)
    same(train("again", "from 4/checkpoint-9", **options), whole, 9)


@pytest.mark.parametrize(("accumulation", "steps"), [(1, (5, 10)), (2, (2, 8))])
def test_a_checkpoint_of_the_end_of_a_pass(train, accumulation, steps):
    """With a batch left over it is taken again, and its dropout is another."""
    options = {"gradient_accumulation_steps": accumulation, "save_strategy": "epoch"}
    whole = train("whole", **options)
    for step in steps:
        resumed = train(f"from {step}", f"whole/checkpoint-{step}", **options)
        same(resumed, whole, step, weights_too=accumulation == 1)


def test_trainer_may_restore_its_callbacks(train):
    whole = train("whole")
    options = {"restore_callback_states_from_checkpoint": True}
    same(train("resumed", "whole/checkpoint-7", **options), whole, 7)


def test_an_older_checkpoint_begins_the_next_pass(train, tmp_path):
    """Its masks are new ones then, and its steps and rates go on."""
    whole = train("whole")
    file = tmp_path / "whole" / "checkpoint-7" / "trainer_state.json"
    state = json.loads(file.read_text())
    assert state["stateful_callbacks"].pop("maskft") == {"epoch": 1, "batches": 2}
    file.write_text(json.dumps(state))
    seen, _ = train("resumed", "whole/checkpoint-7")
    assert [batch[0] for batch in seen] == list(range(7, 12))
    for one, other in zip(seen, whole[0][10:], strict=False):  # the third pass
        assert torch.equal(one[1] * (one[2] == -100), other[1] * (one[2] == -100))
