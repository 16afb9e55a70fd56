"""Trainers of a small model with masking collators, and what their steps were trained on."""

import itertools
import random

import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import Trainer, TrainingArguments

from maskft import DataCollatorForLanguageModeling, RateSchedule, attach

SCHEDULE = RateSchedule("linear", 0.9, 0.1)


class Recorder(DataCollatorForLanguageModeling):
    """Remembers the epoch of each training batch (in this process)."""

    def __post_init__(self):
        super().__post_init__()
        self.seen = []

    def torch_call(self, examples):
        self.seen.append(int(self._epoch))
        return super().torch_call(examples)


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class Stream(torch.utils.data.IterableDataset):
    """No length: Trainer's epoch is then a fraction of max_steps."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def build(tiny_bert, tokenizer, rows, path, collator=None, **options):
    options = {
        "num_train_epochs": 2, "per_device_train_batch_size": 8, "report_to": "none",
        "per_device_eval_batch_size": 7, "use_cpu": True, "disable_tqdm": True, "seed": 1,
        "save_strategy": "no", "logging_strategy": "no",
    } | options  # fmt: skip
    return Trainer(
        model=tiny_bert,
        args=TrainingArguments(output_dir=str(path), **options),
        train_dataset=Rows(rows) if isinstance(rows, list) else rows,
        eval_dataset=Rows(rows) if isinstance(rows, list) else None,
        data_collator=collator or Recorder(tokenizer, rng="sample", seed=1),
    )


class ShuffledStream(IterableDataset):
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


class SizedStream(ShuffledStream):
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


def assert_resumed(found, expected, step, weights_too=True):
    """What a run resumed at ``step`` saw, and its weights, against the whole run's."""
    seen, weights = found
    rest = [batch for batch in expected[0] if batch[0] >= step]
    assert [batch[0] for batch in seen] == [batch[0] for batch in rest]
    for one, other in zip(seen, rest, strict=True):
        assert torch.equal(one[1], other[1]), f"step {one[0]} saw other tokens"
        assert torch.equal(one[2], other[2]), f"step {one[0]} had other masks"
    for name, value in expected[1].items() if weights_too else ():
        assert torch.equal(value, weights[name]), name
