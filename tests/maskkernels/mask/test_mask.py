"""mask_tokens: every backend equals a second implementation, bit for bit, and refuses bad input."""

import itertools
import multiprocessing
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkernels import MaskingPolicy, mask_tokens
from tests.support.contract import mask_row, word
from tests.support.mask_cases import V, batch, cases, edges, weighted

BACKENDS = ("reference", "numba")
CASES = {name: rest for name, *rest in (*cases(), *weighted(), *edges())}


def rows_of(ids, arguments):
    """[(columns, keyword arguments for the second implementation)] of each sample."""
    length = ids.shape[-1]
    if ids.dim() == 2:
        bounds = [b * length for b in range(ids.shape[0] + 1)]
    else:
        bounds = arguments["cu_seqlens"].tolist()
    names = {
        "attention_mask": "real", "special_tokens_mask": "special", "units": "units",
        "rates": "rates",
    }  # fmt: skip
    for b, (begin, end) in enumerate(itertools.pairwise(bounds)):
        row = {
            short: arguments[name].reshape(-1)[begin:end].tolist()
            for name, short in names.items()
            if name in arguments
        }
        for name in ("maskable", "replacement_ids"):
            if name in arguments:
                row[name] = arguments[name].tolist()
        if "sample_ids" in arguments:
            row["sample"] = int(arguments["sample_ids"][b])
        yield begin, end, row


def assert_equal(a, b):
    for name, x, y in zip(a._fields, a, b, strict=True):
        if x is None:
            assert y is None
        else:
            assert x.dtype == y.dtype, name
            assert torch.equal(x, y), name


def test_the_cases_cover_what_they_should():
    for text in (
        "budget-tokens",
        "budget-runs",
        "budget-scattered",
        "packed_gaps",
        "left",
        "weighted",
    ):
        assert sum(text in name for name in CASES) >= 10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_masks_equal_the_second_implementation(name, backend):
    ids, policy, arguments = CASES[name]
    kept = ids.clone()
    found = mask_tokens(ids, policy, **arguments, backend=backend)
    assert torch.equal(ids, kept)
    assert found.input_ids.shape == found.labels.shape == ids.shape
    assert found.input_ids.dtype == found.labels.dtype == ids.dtype
    flat, out, labels = (x.reshape(-1) for x in (ids, found.input_ids, found.labels))
    for begin, end, row in rows_of(ids, arguments):
        expected = mask_row(
            flat[begin:end].tolist(), policy=policy, seed=arguments["seed"],
            epoch=arguments["epoch"], **row,
        )  # fmt: skip
        assert (out[begin:end].tolist(), labels[begin:end].tolist()) == expected
    if arguments["capacity"] is None:
        assert found.count is None
        assert found.positions is None
    else:
        places = (labels != -100).nonzero().flatten().tolist()
        assert found.count.item() == len(places)
        whole = places[: arguments["capacity"]]
        assert found.positions.tolist() == whole + [-1] * (arguments["capacity"] - len(whole))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    ids, _ = batch("full", 6, 6)
    policy = MaskingPolicy(3, V, rate=0.5)
    wide = torch.zeros(6, 12, dtype=torch.int64)
    wide[:, ::2] = ids
    units = torch.arange(6).expand(6, 6)
    for view in (ids.t().contiguous().t(), wide[:, ::2], ids[::1]):
        for extra in ({}, {"units": units, "attention_mask": torch.ones(1).expand(6, 6)}):
            a = mask_tokens(view, policy, seed=1, backend=backend, **extra)
            b = mask_tokens(ids.clone(), policy, seed=1, backend=backend, **extra)
            assert_equal(a, b)
            assert a.input_ids.is_contiguous()
    expanded = torch.tensor([[5]]).expand(3, 40)
    out = mask_tokens(expanded, policy, seed=1, backend=backend)
    assert torch.equal(out.labels[0], out.labels[2])


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, (1 << 64) - 1), st.integers(0, 4))
def test_a_higher_rate_only_adds_masks(low, high, seed, epoch):
    low, high = sorted((low, high))
    ids, arguments = batch("right", seed=seed % 1000)
    few, many = (
        mask_tokens(ids, MaskingPolicy(3, V, rate=p), seed=seed, epoch=epoch, **arguments).labels
        for p in (low, high)
    )
    assert (many[few != -100] != -100).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=20), min_size=1, max_size=6),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from(["bernoulli", "budget"]),
    st.sampled_from(BACKENDS),
    st.booleans(),
    st.booleans(),
)
def test_masks_do_not_depend_on_batch_order_padding_or_packing(
    rows, seed, how, backend, words, rated
):
    policy = MaskingPolicy(3, V, rate=0.3, selection=how)

    def run(ids, numbers, **arguments):
        if words:
            arguments["units"] = numbers // 2
        if rated:
            arguments["rates"] = (numbers % 5) / 4
        found = mask_tokens(ids, policy, seed=seed, backend=backend, **arguments)
        return found.input_ids, found.labels

    alone = [
        [x[0].tolist() for x in run(torch.tensor([row]), numbers=torch.arange(len(row))[None])]
        for row in rows
    ]
    width = max(map(len, rows)) + 2
    for left in (False, True):
        ids = torch.full((len(rows), width), 96)
        keep, numbers = torch.zeros_like(ids), torch.zeros_like(ids)
        for b, row in enumerate(reversed(rows)):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[b, place], keep[b, place] = torch.tensor(row), 1
            numbers[b, place] = torch.arange(len(row))
        out = run(ids, attention_mask=keep, numbers=numbers)
        for b, expected in enumerate(reversed(alone)):
            assert [x[b][keep[b] == 1].tolist() for x in out] == expected
    flat = torch.tensor([t for row in rows for t in row], dtype=torch.int64)
    numbers = torch.tensor([i for row in rows for i in range(len(row))])
    bounds = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    out = run(flat, cu_seqlens=bounds, numbers=numbers)
    for b, expected in enumerate(alone):
        assert [x[bounds[b] : bounds[b + 1]].tolist() for x in out] == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("above", "selected"), [(0.0, False), (0.7, False), (1.0, True)])
def test_thresholds_are_exact_to_one_word(backend, above, selected):
    """Selected iff the word is below floor(rate * 2^32); a fraction more makes no difference."""
    ids = torch.arange(24).view(2, 12)
    names = torch.tensor([7, 8])
    for place in (0, 5, 17):
        row, column = divmod(place, 12)
        words = {s: word(3, 2, s, 7 + row, column) for s in (0, 2)}

        def at(w, above=above):
            return (w + above) / 2.0**32

        def run(policy, place=place, **arguments):
            found = mask_tokens(
                ids, policy, seed=3, epoch=2, sample_ids=names, backend=backend, **arguments
            )
            return found.labels.view(-1)[place] != -100, found.input_ids.view(-1)[place] == 90

        units = (torch.arange(24) % 12).view(2, 12)
        one, unit = (torch.full((2, 12), at(words[s]), dtype=torch.float64) for s in (0, 2))
        assert run(MaskingPolicy(90, V, rate=at(words[0])))[0] == selected
        assert run(MaskingPolicy(90, V), rates=one)[0] == selected
        assert run(MaskingPolicy(90, V, rate=at(words[2])), units=units)[0] == selected
        assert run(MaskingPolicy(90, V), rates=unit, units=units)[0] == selected
        shares = MaskingPolicy(90, V, rate=1.0, mask_share=at(words[0]), random_share=0.0)
        for extra in ({}, {"units": units}, {"rates": torch.ones(2, 12)}):
            assert run(shares, **extra)[1] == selected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_special_tokens_mask_takes_the_place_of_the_table(backend):
    special = torch.tensor([[1, 0], [0, 1]])
    table = torch.zeros(V, dtype=torch.bool)
    table[5] = True
    found = mask_tokens(
        IDS, MaskingPolicy(3, V, rate=1.0), seed=0, special_tokens_mask=special, maskable=table,
        backend=backend,
    )  # fmt: skip
    assert torch.equal(found.labels == -100, special == 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unit_rates_are_the_rates_of_the_units(backend):
    g = torch.Generator().manual_seed(1)
    policy = MaskingPolicy(3, V)
    for kind in ("right", "packed"):
        ids, arguments = batch(kind, 4, 12)
        units = torch.randint(-1, 5, ids.shape, generator=g)
        unit_rates = torch.rand(4, 5, generator=g)
        if kind == "packed":
            row = torch.searchsorted(arguments["cu_seqlens"], torch.arange(48), right=True) - 1
        else:
            row = torch.arange(4)[:, None].expand(4, 12)
        rates = torch.where(units >= 0, unit_rates[row, units.clamp(0)], 0.0)
        arguments |= {"seed": 3, "units": units, "backend": backend}
        assert_equal(
            mask_tokens(ids, policy, unit_rates=unit_rates, **arguments),
            mask_tokens(ids, policy, rates=rates, **arguments),
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("selection", ["bernoulli", "budget"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_come_back_empty(backend, selection, shape):
    policy = MaskingPolicy(3, V, selection=selection, at_least_one=selection == "budget")
    ids = torch.zeros(shape, dtype=torch.int64)
    found = mask_tokens(ids, policy, seed=0, capacity=2, backend=backend, units=ids)
    assert found.input_ids.shape == found.labels.shape == shape
    assert found.count.item() == 0
    assert found.positions.tolist() == [-1, -1]
    flat = torch.zeros(0, dtype=torch.int64)
    for bounds in ([0], [0, 0, 0]):
        found = mask_tokens(flat, policy, seed=0, cu_seqlens=torch.tensor(bounds), backend=backend)
        assert found.labels.shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_with_nothing_to_mask_stay_as_they_are(backend):
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    for selection in ("bernoulli", "budget"):
        policy = MaskingPolicy(
            3, V, rate=1.0, selection=selection, at_least_one=selection == "budget"
        )
        for given_ in (
            {"attention_mask": torch.zeros(2, 3)},
            {"special_tokens_mask": torch.ones(2, 3, dtype=torch.bool)},
            {"maskable": torch.zeros(V, dtype=torch.bool)},
            {"units": torch.full((2, 3), -1)},
        ):
            found = mask_tokens(ids, policy, seed=0, backend=backend, **given_)
            assert torch.equal(found.input_ids, ids)
            assert (found.labels == -100).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_outside_the_vocabulary_are_refused_but_at_padding(backend):
    policy = MaskingPolicy(3, V)
    for bad in (V, -1, 1 << 40):
        ids = torch.tensor([[5, 6], [7, bad]])
        with pytest.raises(ValueError, match=rf"input_ids\[1, 1\] is {bad}, outside .*\[0, {V}\)"):
            mask_tokens(ids, policy, seed=0, backend=backend)
        keep = torch.tensor([[1, 1], [1, 0]])
        assert mask_tokens(ids, policy, seed=0, attention_mask=keep, backend=backend)
        with pytest.raises(ValueError, match=rf"input_ids\[3\] is {bad}"):
            mask_tokens(
                ids.view(-1), policy, seed=0, cu_seqlens=torch.tensor([0, 4]), backend=backend
            )


IDS = torch.tensor([[5, 6], [7, 8]])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"input_ids": IDS.float()}, TypeError, r"int32 or int64, got torch\.float32"),
        ({"input_ids": IDS.short()}, TypeError, r"int32 or int64, got torch\.int16"),
        ({"input_ids": [[1]]}, TypeError, r"input_ids must be a torch\.Tensor, got list"),
        ({"input_ids": IDS[0]}, ValueError, r"must be \[B, T\], got shape \(2,\)"),
        ({"input_ids": IDS[None]}, ValueError, r"must be \[B, T\], got shape \(1, 2, 2\)"),
        ({"policy": 0.15}, TypeError, "policy must be a MaskingPolicy, got float"),
        ({"seed": 1 << 64}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
        ({"epoch": -1}, ValueError, "epoch must not be negative"),
        ({"attention_mask": IDS[:1]}, ValueError, "attention_mask must have the shape"),
        ({"attention_mask": [1]}, TypeError, r"attention_mask must be a torch\.Tensor"),
        ({"attention_mask": IDS.to("meta")}, ValueError, "attention_mask is on meta"),
        ({"special_tokens_mask": IDS[0]}, ValueError, "special_tokens_mask must have the shape"),
        ({"sample_ids": torch.arange(3)}, ValueError, r"sample_ids must have shape \[2\]"),
        ({"sample_ids": torch.arange(2).int()}, TypeError, r"sample_ids must be .*int64"),
        ({"maskable": torch.ones(V)}, TypeError, r"maskable must be .*bool"),
        ({"maskable": torch.ones(5, dtype=torch.bool)}, ValueError, "each of the 97 ids"),
        ({"replacement_ids": torch.tensor([0, V])}, ValueError, "from 0 to 97, outside"),
        ({"replacement_ids": torch.tensor([], dtype=torch.int64)}, ValueError, "must hold 1 to"),
        ({"replacement_ids": torch.tensor([0.5])}, TypeError, "replacement_ids must be"),
        ({"policy": MaskingPolicy(3, V, replacement="unit")}, ValueError, "needs units"),
        ({"units": IDS.float()}, TypeError, "units must be int32 or int64"),
        ({"units": IDS[0]}, ValueError, "units must have the shape"),
        ({"units": IDS << 40}, ValueError, r"units must be in .*, got"),
        ({"cu_seqlens": [0, 2], "input_ids": IDS[0]}, TypeError, "cu_seqlens must be a torch"),
        ({"rates": IDS}, TypeError, "rates must be a float tensor"),
        ({"rates": torch.tensor([[0.1, 0.2], [0.3, 1.1]])}, ValueError, "rates must be between"),
        ({"rates": torch.full((2, 2), torch.nan)}, ValueError, "rates must be between"),
        ({"unit_rates": torch.rand(2, 9)}, ValueError, "unit_rates goes with units"),
        ({"unit_rates": torch.rand(2, 3), "units": IDS}, ValueError, "units go up to 8"),
        ({"unit_rates": torch.rand(3, 9), "units": IDS}, ValueError, r"must be \[2, U\]"),
        ({"unit_rates": torch.rand(2, 9) + 1, "units": IDS}, ValueError, "between 0 and 1"),
        ({"capacity": -1}, ValueError, "capacity must not be negative"),
        ({"capacity": 1.5}, TypeError, "capacity must be an int"),
        ({"cu_seqlens": torch.tensor([0, 2])}, ValueError, r"must be flat \[N\]"),
        ({"backend": "triton"}, ValueError, "backend='triton': tensors are on cpu"),
        ({"backend": "jax"}, ValueError, "backend='jax': expected one of"),
        ({"backend": "numba", "input_ids": IDS.to("meta")}, ValueError, "tensors are on meta"),
    ],
)
def test_bad_arguments_are_refused(change, error, text):
    arguments = {"input_ids": IDS, "policy": MaskingPolicy(3, V), "seed": 0} | change
    with pytest.raises(error, match=text):
        mask_tokens(arguments.pop("input_ids"), arguments.pop("policy"), **arguments)


@pytest.mark.parametrize("bounds", [[0, 3], [1, 4], [0, 5], [0, 3, 2, 4], []])
def test_broken_cu_seqlens_are_refused(bounds):
    with pytest.raises(ValueError, match="cu_seqlens must"):
        mask_tokens(
            IDS.view(-1), MaskingPolicy(3, V), seed=0,
            cu_seqlens=torch.tensor(bounds, dtype=torch.int64),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"rate": 1.1}, ValueError, "rate must be between 0 and 1, got 1.1"),
        ({"rate": float("nan")}, ValueError, "rate must be between 0 and 1, got nan"),
        ({"rate": "0.1"}, TypeError, "rate must be a number, got str"),
        ({"mask_share": -0.1}, ValueError, "mask_share must be between"),
        ({"mask_share": 0.9, "random_share": 0.2}, ValueError, "must not exceed 1, got 0.9"),
        ({"mask_token_id": V}, ValueError, "mask_token_id must be in"),
        ({"mask_token_id": -1}, ValueError, "mask_token_id must be in"),
        ({"mask_token_id": None}, TypeError, "mask_token_id must be an int, got NoneType"),
        ({"vocab_size": 0}, ValueError, "vocab_size must be in"),
        ({"vocab_size": 1 << 31}, ValueError, "vocab_size must be in"),
        ({"ignore_index": 0}, ValueError, "ignore_index must be in"),
        ({"at_least_one": True}, ValueError, "at_least_one goes with selection='budget'"),
        ({"selection": "topk"}, ValueError, "selection must be one of"),
        ({"replacement": "word"}, ValueError, "replacement must be"),
    ],
)
def test_bad_policies_are_refused(change, error, text):
    with pytest.raises(error, match=text):
        MaskingPolicy(**({"mask_token_id": 3, "vocab_size": V} | change))


def test_numbers_of_numpy_are_numbers():
    policy = MaskingPolicy(np.int64(3), np.int32(V), rate=np.float64(0.5), ignore_index=np.int8(-5))
    found = mask_tokens(IDS, policy, seed=np.uint64(1 << 63), epoch=np.int64(2))
    plain = MaskingPolicy(3, V, rate=0.5, ignore_index=-5)
    assert_equal(found, mask_tokens(IDS, plain, seed=1 << 63, epoch=2))


def test_a_long_row_is_masked_at_its_rate():
    ids = torch.tensor([[5]], dtype=torch.int32).expand(1, 1 << 22)
    found = mask_tokens(ids, MaskingPolicy(3, V, selection="budget"), seed=1, capacity=0)
    assert found.count.item() == round((1 << 22) * 0.15)


def _labels_in_a_process(queue):
    queue.put(mask_tokens(IDS, MaskingPolicy(3, V, rate=0.5), seed=4).labels.tolist())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_other_processes_see_the_same_masks(method):
    expected = mask_tokens(IDS, MaskingPolicy(3, V, rate=0.5), seed=4).labels.tolist()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_labels_in_a_process, args=(queue,))
    process.start()
    assert queue.get(timeout=120) == expected
    process.join()


def test_threads_see_the_same_masks():
    ids, arguments = batch("right", 64, 128)
    policy = MaskingPolicy(3, V, rate=0.3)
    expected = mask_tokens(ids, policy, seed=4, **arguments)
    found = []

    def work():
        found.extend(mask_tokens(ids, policy, seed=4, **arguments) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 150
    for result in found:
        assert_equal(result, expected)
