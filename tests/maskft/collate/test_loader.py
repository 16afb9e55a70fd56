"""The same masks from every DataLoader: workers, start methods, threads, ranks, resume."""

import os
import signal
import threading

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, Subset, get_worker_info

from maskft import DataCollatorForLanguageModeling
from tests.support.small import CORPUS, build_wordpiece

pytestmark = pytest.mark.slow

SIZE = 3


def make(tokenizer, **options):
    options = {"rng": "sample", "seed": 7, "mlm_probability": 0.4} | options
    return DataCollatorForLanguageModeling(tokenizer, **options)


def masks(loader):
    """{row ids as text: labels as text} of one pass; padding left out."""
    found = {}
    for batch in loader:
        for labels, real, kept in zip(
            batch["labels"], batch["attention_mask"].bool(), batch["number"], strict=True
        ):
            found[int(kept)] = labels[real].tolist()
    return found


@pytest.fixture
def data(tokenizer):
    return [{**tokenizer(text), "number": i} for i, text in enumerate(CORPUS)]


@pytest.fixture
def expected(tokenizer, data):
    collator = make(tokenizer)
    epochs = []
    for epoch in range(2):
        collator.set_epoch(epoch)
        epochs.append(masks(DataLoader(data, 1, collate_fn=collator)))
    assert epochs[0] != epochs[1]
    return epochs


@pytest.mark.parametrize(
    ("workers", "method", "persistent"),
    [
        (0, None, False),
        (1, "fork", False),
        (2, "fork", True),
        (4, "fork", False),
        (1, "spawn", True),
        (2, "spawn", True),
        (2, "forkserver", True),
    ],
)
def test_masks_do_not_depend_on_workers(tokenizer, data, expected, workers, method, persistent):
    collator = make(tokenizer)
    collator(data[:2])  # compiled code and tables are in the parent when workers fork
    loader = DataLoader(
        data, SIZE, shuffle=True, collate_fn=collator, num_workers=workers,
        multiprocessing_context=method, persistent_workers=persistent,
    )  # fmt: skip
    for epoch in (0, 1, 0):
        collator.set_epoch(epoch)
        assert masks(loader) == expected[epoch]


def test_two_ranks_see_the_masks_of_one(tokenizer, data, expected):
    found = {}
    for rank in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank)
        found |= masks(DataLoader(data, SIZE, sampler=sampler, collate_fn=make(tokenizer)))
    assert found == expected[0]


def test_a_resumed_epoch_goes_on_with_its_masks(tokenizer, data, expected):
    rest = Subset(data, range(SIZE * 2, len(data)))
    found = masks(DataLoader(rest, SIZE, collate_fn=make(tokenizer)))
    assert found == {i: m for i, m in expected[0].items() if i >= SIZE * 2}


def test_threads_do_not_disturb_each_other(tokenizer, data, expected):
    collator = make(tokenizer)
    results = [None] * 4

    def work(i):
        results[i] = [masks(DataLoader(data, SIZE + i, collate_fn=collator)) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found == expected[0] for result in results for found in result)


class Deadly(list):
    """Rows of which one kills the worker that reads it."""

    def __getitem__(self, i):
        if i == len(self) // 2 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_killed_worker_is_an_error_and_leaves_the_collator_whole(
    tokenizer, data, expected, method
):
    collator = make(tokenizer)
    loader = DataLoader(
        Deadly(data), SIZE, collate_fn=collator, num_workers=2, multiprocessing_context=method
    )
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly|killed by"):
        masks(loader)
    for epoch in range(2):
        collator.set_epoch(epoch)
        again = DataLoader(data, SIZE, collate_fn=collator, num_workers=2)
        assert masks(again) == expected[epoch]


def test_an_interrupt_leaves_the_collator_whole(tokenizer, data, expected):
    collator = make(tokenizer)

    def work_for_ever():
        while True:
            masks(DataLoader(data, SIZE, collate_fn=collator))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # off in the background
    try:
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            work_for_ever()
    finally:
        signal.signal(signal.SIGINT, before)
    assert masks(DataLoader(data, SIZE, collate_fn=collator)) == expected[0]


@pytest.mark.parametrize("rng", ["stream", "hf"])
def test_workers_of_a_seeded_stream_differ_and_repeat(rng):
    tokenizer = build_wordpiece()
    data = [{**tokenizer(CORPUS[0]), "number": i} for i in range(8)]
    passes = []
    for _ in range(2):
        collator = make(tokenizer, rng=rng, seed=3)
        loader = DataLoader(data, 1, collate_fn=collator, num_workers=2)
        passes.append(masks(loader))
    assert passes[0] == passes[1]
    assert passes[0][0] != passes[0][1]  # one row, two workers


def test_workers_of_an_unseeded_stream_follow_torch(tokenizer, data):
    passes = []
    for _ in range(2):
        torch.manual_seed(3)
        loader = DataLoader(
            data, SIZE, collate_fn=make(tokenizer, rng="stream", seed=None), num_workers=2
        )
        passes.append(masks(loader))
    assert passes[0] == passes[1]
    assert passes[0] != masks(loader)


def test_a_seed_in_a_process_that_is_no_worker_is_the_error_of_transformers(tokenizer, rows):
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    collator = DataCollatorForLanguageModeling(tokenizer, seed=1)

    def work():
        try:
            collator(rows)
        except ValueError as error:
            queue.put(str(error))

    process = context.Process(target=work)
    process.start()
    assert "Worker process information is not available" in queue.get(timeout=60)
    process.join()
