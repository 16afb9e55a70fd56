"""A seeded stream: other masks in every pass, worker and rank; a repeated run repeats them."""

import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader

from maskft import (
    DataCollatorForLanguageModeling,
    DataCollatorForSpanCorruption,
    DataCollatorForTextInfilling,
)
from tests.support.small import CORPUS, build_wordpiece


def rows_of(tokenizer):
    """Rows with so many ways to mask them that two are alike by chance once in many thousands."""
    return [{"input_ids": tokenizer(" ".join(CORPUS[:1] * 16))["input_ids"]}] * 8


def masking(**options):
    tokenizer = build_wordpiece()
    return DataCollatorForLanguageModeling(tokenizer, **options), rows_of(tokenizer)


def spans(**options):
    tokenizer = build_wordpiece()
    ids = range(len(tokenizer), len(tokenizer) + 50)
    return DataCollatorForSpanCorruption(tokenizer, sentinel_ids=ids, **options), rows_of(tokenizer)


def infilling(**options):
    tokenizer = build_wordpiece()
    collator = DataCollatorForTextInfilling(tokenizer, permute_sentences=False, **options)
    return collator, rows_of(tokenizer)


KINDS = {"masking": masking, "spans": spans, "infilling": infilling}
each_kind = pytest.mark.parametrize("kind", KINDS)


def one_pass(collator, rows, workers=2, method="fork"):
    loader = DataLoader(
        rows,
        1,
        collate_fn=collator,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
    )
    return [(batch["input_ids"].tolist(), batch["labels"].tolist()) for batch in loader]


@pytest.fixture
def rank():
    """Be a rank of a group that has no other process."""

    def become(number):
        if distributed.is_initialized():
            distributed.destroy_process_group()
        distributed.init_process_group("fake", rank=number, world_size=4, store=FakeStore())

    yield become
    distributed.destroy_process_group()


@each_kind
def test_passes_with_new_workers_differ_and_a_repeated_run_repeats_them(kind):
    runs = []
    for _ in range(2):
        collator, rows = KINDS[kind](seed=3)
        runs.append([one_pass(collator, rows) for _ in range(2)])
    assert runs[0] == runs[1]
    batches = [repr(batch) for found in runs[0] for batch in found]
    assert len(set(batches)) == len(batches)


@each_kind
def test_forked_workers_do_not_go_on_with_the_stream_of_their_parent(kind):
    collator, rows = KINDS[kind](seed=3)
    collator(rows[:1])  # a parent with a stream of its own
    batches = [repr(batch) for _ in range(2) for batch in one_pass(collator, rows)]
    assert len(set(batches)) == len(batches)


def test_spawned_and_forked_workers_draw_the_same():
    found = []
    for method in ("fork", "spawn"):
        collator, rows = masking(seed=3)
        found.append(one_pass(collator, rows, 1, method))
    assert found[0] == found[1]


@each_kind
@pytest.mark.parametrize("seed", [3, None])
def test_ranks_with_one_seed_draw_other_masks(kind, seed, rank):
    found = []
    for number in (0, 1, 0):
        rank(number)
        collator, rows = KINDS[kind](seed=seed)
        torch.manual_seed(5)  # as Trainer does on every rank
        found.append(one_pass(collator, rows, 0))
    assert found[0] == found[2]
    assert all(a != b for a, b in zip(found[0], found[1], strict=True))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_know_the_rank_of_their_parent(method, rank):
    collator, rows = masking(seed=3)  # made before the process group, as scripts do
    found = []
    for number in (0, 1):
        rank(number)
        collator, rows = masking(seed=3)
        found.append(one_pass(collator, rows, 1, method))
    assert all(a != b for a, b in zip(*found, strict=True))


def test_a_stream_that_begins_in_another_epoch_is_another_one():
    found = []
    for epoch in (0, 1):
        collator, rows = masking(seed=3)
        collator.set_epoch(epoch)
        found.append(collator(rows)["labels"])
    assert not torch.equal(*found)


@pytest.mark.parametrize("rng", ["stream", "hf", "sample"])
@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_seeds_at_the_ends_of_64_bits_work_in_workers(rng, seed):
    collator, rows = masking(seed=seed, rng=rng)
    assert len(one_pass(collator, rows)) == len(rows)


def test_a_generator_of_the_user_is_left_alone():
    collator, rows = masking(seed=3)
    collator.generator = torch.Generator().manual_seed(8)
    expected = torch.Generator().manual_seed(8)
    collator(rows)
    torch.empty((), dtype=torch.int64).random_(generator=expected)
    assert torch.equal(collator.generator.get_state(), expected.get_state())
