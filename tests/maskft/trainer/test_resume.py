"""Training over a stream, interrupted and resumed: the batches and weights of the whole run."""

import json

import pytest
import torch
from datasets import Dataset

from tests.support.trainers import ShuffledStream, SizedStream, assert_resumed, record

pytestmark = pytest.mark.slow


@pytest.fixture
def train(tiny_bert, tokenizer, rows, tmp_path):
    """``record`` with one model, the same at the beginning, in a folder of this name."""
    begin = {k: v.clone() for k, v in tiny_bert.state_dict().items()}

    def train(name, resume=None, stream=ShuffledStream, **options):
        tiny_bert.load_state_dict(begin)
        resume = resume and tmp_path / resume
        return record(tiny_bert, tokenizer, stream(rows), tmp_path / name, resume, **options)

    return train


def shuffled(rows):
    """A stream of datasets' own."""
    return Dataset.from_list(rows).to_iterable_dataset(2).shuffle(seed=1, buffer_size=8)


@pytest.mark.parametrize(
    ("stream", "workers", "mask_on_device"),
    [
        (ShuffledStream, 0, False),
        (ShuffledStream, 0, True),
        (ShuffledStream, 2, False),
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
        assert_resumed(train(f"from {step}", f"whole/checkpoint-{step}", **options), whole, step)
    assert_resumed(train("again", "from 4/checkpoint-9", **options), whole, 9)


@pytest.mark.parametrize(("accumulation", "steps"), [(1, (5, 10)), (2, (2, 8))])
def test_a_checkpoint_of_the_end_of_a_pass(train, accumulation, steps):
    """With a batch left over it is taken again, and its dropout is another."""
    options = {"gradient_accumulation_steps": accumulation, "save_strategy": "epoch"}
    whole = train("whole", **options)
    for step in steps:
        resumed = train(f"from {step}", f"whole/checkpoint-{step}", **options)
        assert_resumed(resumed, whole, step, weights_too=accumulation == 1)


def test_trainer_may_restore_its_callbacks(train):
    whole = train("whole")
    options = {"restore_callback_states_from_checkpoint": True}
    assert_resumed(train("resumed", "whole/checkpoint-7", **options), whole, 7)


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
