"""Two gloo processes under Trainer: the masks and rates of one process with the same batches."""

import pytest
import torch

from maskft import DataCollatorForLanguageModeling
from tests.distributed.ranks import RESUMED, RUNS, STEPS, mask, run
from tests.support.small import build_wordpiece
from tests.support.trainers import SCHEDULE, assert_resumed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank was trained on, by run: (the whole run, the resumed one)."""
    folder = tmp_path_factory.mktemp("ranks")
    run("masks", folder)
    return [torch.load(folder / f"masks{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_mask_as_one_process(name, ranks, tmp_path):
    (first, _), (second, _) = (rank[name][0] for rank in ranks)
    expected, _ = mask(tmp_path, name, 8)
    assert len(first) == len(second) == len(expected)
    for one, two, whole in zip(first, second, expected, strict=True):
        assert one[0] == two[0] == whole[0]
        for found in (1, 2):
            assert torch.equal(torch.cat([one[found], two[found]]), whole[found])


@pytest.mark.parametrize("name", RUNS)
def test_each_step_has_the_rate_of_the_schedule(name, ranks):
    """As a collator without a schedule masks, told the epoch and the rate."""
    for rank in ranks:
        for batch, (step, ids, labels) in enumerate(rank[name][0][0]):
            plain = DataCollatorForLanguageModeling(
                build_wordpiece(), rng="sample", seed=3, mlm_probability=SCHEDULE(step / STEPS)
            )
            plain.set_epoch(batch // 3)
            rows = torch.where(labels != -100, labels, ids)
            again = plain([{"input_ids": r, "attention_mask": (r != 0).long()} for r in rows])
            assert torch.equal(again["labels"], labels), (name, step)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_resume_where_they_stood(name, ranks):
    for rank in ranks:
        whole, resumed = rank[name]
        assert resumed[0]
        assert_resumed(resumed, whole, RESUMED)
