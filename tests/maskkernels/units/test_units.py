"""Numbers of words: the reference against plain Python, the kernel against the reference."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkernels import units_from_offsets, units_from_word_ids, word_units
from tests.support.mask_cases import SHAPES, V, batch

TABLE = torch.randint(
    0, 4, (V - 10,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)


def plain(may, begins):
    """Numbers of one sample, from who may be masked and who begins after the token before."""
    units, number, before = [], -1, False
    for ok, new in zip(may, begins, strict=True):
        number += ok and (new or not before)
        units.append(number if ok else -1)
        before = ok
    return units


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, V + 3), max_size=30), st.data())
def test_the_reference_follows_the_plain_rule(row, data):
    may = data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))
    flags = [int(TABLE[i]) if 0 <= i < TABLE.numel() else 0 for i in row]
    begins = [bool(f & 1 or (i and flags[i - 1] & 2)) for i, f in enumerate(flags)]
    ids = torch.tensor([row], dtype=torch.int64)
    special = ~torch.tensor([may], dtype=torch.bool)
    for backend in ("reference", "numba"):
        units = word_units(ids, TABLE, special_tokens_mask=special, backend=backend)
        assert units.tolist() == [plain(may, begins)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("special", [None, "table", "mask"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_kernel_equals_the_reference(shape, special, dtype):
    ids, arguments = batch(shape, 7, 40, seed=3)
    ids = ids.to(dtype)
    if "cu_seqlens" in arguments:
        arguments["cu_seqlens"] = torch.tensor([0, 3, 3, 40, 7 * 40])
    g = torch.Generator().manual_seed(2)
    if special == "table":
        arguments["maskable"] = torch.rand(V - 5, generator=g) < 0.8
    if special == "mask":
        arguments["special_tokens_mask"] = torch.rand(ids.shape, generator=g) < 0.3
    offsets = torch.randint(0, 3, (*ids.shape, 2), generator=g)
    word_ids = torch.randint(-1, 2, ids.shape, generator=g)
    groups = torch.randint(-2, 2, ids.shape, generator=g)
    for (run, beside), group in itertools.product(
        ((word_units, TABLE), (units_from_offsets, offsets), (units_from_word_ids, word_ids)),
        (None, groups),
    ):
        one, two = (
            run(ids, beside, backend=b, groups=group, **arguments) for b in ("reference", "numba")
        )
        assert torch.equal(one, two), run
        assert one.shape == ids.shape
        assert (one >= 0).any()


def test_a_packed_sample_begins_anew():
    ids = torch.tensor([[1, 1, 1], [1, 1, 1]])
    table = torch.tensor([0, 0], dtype=torch.uint8)
    packed = word_units(ids.view(-1), table, cu_seqlens=torch.tensor([0, 3, 6]))
    assert packed.tolist() == word_units(ids, table).view(-1).tolist() == [0] * 6


def test_groups_are_units_whatever_the_words():
    ids = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1]])
    groups = torch.tensor([[-1, 0, 0, 0, 7, -1, -1, 7]])
    table = torch.tensor([0, 1], dtype=torch.uint8)  # every token begins a word
    for backend in ("reference", "numba"):
        units = word_units(ids, table, groups=groups, backend=backend)
        assert units.tolist() == [[0, 1, 1, 1, 2, 3, 4, 5]]
        in_no_word = units_from_word_ids(ids, -ids, groups=groups, backend=backend)
        assert in_no_word.tolist() == [[-1, 0, 0, 0, 1, -1, -1, 2]]
        joined = units_from_word_ids(ids, ids, groups=groups, backend=backend)
        assert joined.tolist() == [[0, 1, 1, 1, 2, 3, 3, 4]]


def test_empty_batches_come_back_empty():
    for backend in ("reference", "numba"):
        for shape in ((0, 5), (3, 0)):
            ids = torch.zeros(shape, dtype=torch.int64)
            assert word_units(ids, TABLE, backend=backend).shape == shape


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_whole_graph_compiles_to_the_same_units(backend):
    ids = torch.randint(0, V, (3, 9))

    def units(ids):
        return word_units(ids, TABLE, backend=backend) + 0

    compiled = torch.compile(units, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids), units(ids))


IDS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: word_units(IDS, TABLE.long()), TypeError, "table must be uint8"),
        (lambda: word_units(IDS, None), TypeError, "table must be uint8"),
        (lambda: word_units(IDS.float(), TABLE), TypeError, "int32 or int64"),
        (lambda: word_units(IDS, TABLE, maskable=IDS), TypeError, r"maskable must be bool \[V\]"),
        (
            lambda: word_units(IDS, TABLE, attention_mask=IDS[:1]),
            ValueError,
            "attention_mask must have the shape",
        ),
        (lambda: word_units(IDS, TABLE, backend="triton"), ValueError, "tensors are on cpu"),
        (
            lambda: word_units(IDS, TABLE.to("meta")),
            ValueError,
            "table is on meta, input_ids on cpu",
        ),
        (lambda: units_from_offsets(IDS, IDS), ValueError, r"shape \(2, 3, 2\), got \(2, 3\)"),
        (lambda: units_from_offsets(IDS, IDS.int()), TypeError, "must be an int64 tensor"),
        (lambda: units_from_word_ids(IDS, [[1]]), TypeError, "must be an int64 tensor"),
        (lambda: units_from_word_ids(IDS, IDS[:1]), ValueError, r"shape \(2, 3\)"),
        (lambda: units_from_word_ids([[1]], IDS), TypeError, "input_ids must be a torch.Tensor"),
    ],
)
def test_bad_arguments_are_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
