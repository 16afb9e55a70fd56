"""Rows to batches: every form of rows, against plain Python, and every way to get them wrong."""

import array
import collections

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkernels import PackedRows, pad_batch, pad_rows
from maskkernels.batch import flatten_rows

ROWS = [[5, 1, 2], [], [7], [3, 3, 3, 3, -9]]
FORMS = {
    "lists": lambda rows: rows,
    "tuples": lambda rows: [tuple(row) for row in rows],
    "int64": lambda rows: [np.array(row, np.int64) for row in rows],
    "int32": lambda rows: [np.array(row, np.int32) for row in rows],
    "int8": lambda rows: [np.array(row, np.int8) for row in rows],
    "objects": lambda rows: [np.array(row, object) for row in rows],
    "strided": lambda rows: [np.repeat(np.array(row, np.int64), 3)[::3] for row in rows],
    "reversed": lambda rows: [np.array(row[::-1], np.int64)[::-1] for row in rows],
    "read-only": lambda rows: [np.frombuffer(np.array(row, np.int64).tobytes(), np.int64)
                               for row in rows],
    "tensors": lambda rows: [torch.tensor(row, dtype=torch.int64) for row in rows],
    "int16 tensors": lambda rows: [torch.tensor(row, dtype=torch.int16) for row in rows],
    "strided tensors": lambda rows: [torch.tensor(row, dtype=torch.int64).repeat_interleave(2)[::2]
                                     for row in rows],
    "mixed dtypes": lambda rows: [
        np.array(row, (np.int32, np.int64, np.uint8, np.int16)[b % 4] if min([0, *row]) >= 0
                 else np.int64) for b, row in enumerate(rows)],
    "mixed kinds": lambda rows: [
        (list, tuple, np.array, torch.tensor)[b % 4](row) if row else [] for b, row in
        enumerate(rows)],
    "array of objects": lambda rows: _object_array([np.array(row, np.int64) for row in rows]),
    "arrow": lambda rows: pa.array(rows, pa.list_(pa.int64())),
    "arrow int32": lambda rows: pa.array(rows, pa.list_(pa.int32())),
    "arrow int8, large": lambda rows: pa.array(rows, pa.large_list(pa.int8())),
    "arrow slice": lambda rows: pa.array([[1, 2], *rows, [3]], pa.list_(pa.int64()))[1:-1],
    "arrow view": lambda rows: pa.array([[1], *rows], pa.list_view(pa.int64()))[1:],
    "arrow dictionary": lambda rows: pa.DictionaryArray.from_arrays(
        pa.array(range(len(rows))), pa.array(rows, pa.list_(pa.int64()))),
    "arrow of a dictionary": lambda rows: pa.ListArray.from_arrays(
        pa.array(np.cumsum([0, *map(len, rows)]), pa.int32()),
        pa.array([i for row in rows for i in row], pa.int64()).dictionary_encode()),
    "nulls outside a slice": lambda rows: pa.array(
        [None, [None], *rows, [None]], pa.list_(pa.int64()))[2:-1],
    "deques and arrays": lambda rows: [
        (collections.deque, lambda row: array.array("q", row))[b % 2](row)
        for b, row in enumerate(rows)],
    "scalars": lambda rows: [[(np.int32, np.int64, torch.tensor)[i % 3](i) for i in row]
                             for row in rows],
    "subclasses": lambda rows: [np.ma.array(row, dtype=np.int64) for row in rows],
    "arrow chunks": lambda rows: pa.chunked_array(
        [pa.array(part, pa.list_(pa.int64())) for part in (rows[:1], [], rows[1:])]),
}  # fmt: skip


def _object_array(rows):
    out = np.empty(len(rows), object)
    out[:] = rows
    return out


def padded(rows, value, side="right", multiple=1):
    """The plain formula."""
    length = max(map(len, rows), default=0)
    length = (length + multiple - 1) // multiple * multiple
    beside = [[value] * (length - len(row)) for row in rows]
    if side == "left":
        return [b + list(row) for b, row in zip(beside, rows, strict=True)]
    return [list(row) + b for b, row in zip(beside, rows, strict=True)]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_rows_gives_the_same_batch(form, backend):
    rows = FORMS[form](ROWS)
    for side in ("right", "left"):
        for dtype in (torch.int64, torch.int32):
            found = pad_rows(
                rows, padding_value=-1, padding_side=side, pad_to_multiple_of=4, dtype=dtype,
                backend=backend,
            )  # fmt: skip
            assert found.dtype == dtype
            assert found.tolist() == padded(ROWS, -1, side, 4)
    values, bounds = flatten_rows(rows)
    assert values.tolist() == [i for row in ROWS for i in row]
    assert bounds.tolist() == [0, 3, 3, 4, 9]
    assert bounds.dtype == torch.int64


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(-128, 127), max_size=9), min_size=1, max_size=6),
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(["left", "right"]),
    st.integers(1, 5),
)
def test_any_rows_are_padded_by_the_plain_formula(rows, form, side, multiple):
    found = pad_rows(
        FORMS[form](rows), padding_value=9, padding_side=side, pad_to_multiple_of=multiple
    )
    assert found.tolist() == padded(rows, 9, side, multiple)


@pytest.mark.parametrize("make", [np.array, np.ma.array, torch.tensor])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_a_matrix_is_rows_too(make, dtype):
    matrix = make(
        [[1, 2, 3], [4, 5, 6]], dtype=getattr(torch if make is torch.tensor else np, dtype)
    )
    assert pad_rows(matrix).tolist() == [[1, 2, 3], [4, 5, 6]]
    transposed = matrix.T
    assert pad_rows(transposed, pad_to_multiple_of=4).tolist() == padded(
        [[1, 4], [2, 5], [3, 6]], 0, multiple=4
    )


def test_fixed_size_arrow_lists_are_rows_too():
    column = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int64(), 2))
    assert pad_rows(column[1:]).tolist() == [[3, 4], [5, 6]]


def test_booleans_are_integers_too():
    kinds = ([[True, False]], np.array([[True, False]]), torch.tensor([[True, False]]))
    for rows in (*kinds, pa.array([[True, False]])):
        assert pad_rows(rows).tolist() == [[1, 0]]
        assert pad_rows(rows).dtype == torch.int64


def test_arrow_rows_whose_offsets_fall_are_refused():
    offsets = pa.py_buffer(np.array([0, 5, 2, 5], np.int32))
    column = pa.ListArray.from_buffers(
        pa.list_(pa.int64()), 3, [None, offsets], children=[pa.array(range(5), pa.int64())]
    )
    with pytest.raises(ValueError, match="rows is broken: its offsets fall"):
        pad_rows(column)


def test_arrow_rows_without_values_or_of_one_length():
    assert pad_rows(pa.array([[], []])).shape == (2, 0)  # of type list<null>
    assert pad_rows(pa.array([None, [3, 4]], pa.list_(pa.int64(), 2))[1:]).tolist() == [[3, 4]]


def test_no_batch_shares_memory_with_what_it_was_made_of():
    matrix = np.arange(6).reshape(2, 3)
    tensor = torch.arange(6).view(2, 3)
    column = pa.array(matrix.tolist(), pa.list_(pa.int64()))
    for rows in (matrix, tensor, list(matrix), [matrix[0]], [tensor[0]], column):
        found = pad_rows(rows)
        before = found.tolist()
        found += 100
        again = pad_rows(rows)
        assert again.tolist() == before
    assert matrix.tolist() == tensor.tolist() == column.to_pylist() == [[0, 1, 2], [3, 4, 5]]


def test_arrow_columns_are_flattened_without_a_copy():
    from maskkernels.batch.rows import to_rows

    column = pa.array([[1, 2], [3], [4, 5]], pa.list_(pa.int64()))
    raw = column.values.to_numpy()
    for part in (column, column[1:], pa.chunked_array([column])):
        assert np.shares_memory(to_rows(part, "rows").values, raw)


@pytest.mark.parametrize("threads", [1, 2])
def test_large_batches_equal_the_reference(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        g = np.random.default_rng(0)
        rows = [g.integers(0, 99, n) for n in g.integers(0, 2000, 300)]
        examples = [{"input_ids": row, "token_type_ids": row % 2} for row in rows]
        values = {"input_ids": 7, "token_type_ids": 1}
        for side in ("left", "right"):
            one, two = (
                pad_batch(examples, padding_values=values, padding_side=side, backend=backend)
                for backend in ("numba", "reference")
            )
            assert list(one) == list(two) == ["input_ids", "token_type_ids", "attention_mask"]
            assert all(torch.equal(one[name], two[name]) for name in one)
    finally:
        torch.set_num_threads(before)


def test_a_batch_has_every_column():
    examples = [
        {"label": 1, "input_ids": [4, 5], "attention_mask": [1, 1], "weight": 0.5, "box": [1, 2]},
        {"label": 0, "input_ids": [6], "attention_mask": [1], "weight": 2.0, "box": [3, 4]},
    ]
    expected = {
        "label": [1, 0],
        "input_ids": [[4, 5], [6, 0]],
        "attention_mask": [[1, 1], [1, 0]],
        "weight": [0.5, 2.0],
        "box": [[1, 2], [3, 4]],
    }
    values = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0}
    by_column = {name: [example[name] for example in examples] for name in examples[0]}
    arrays = [{k: np.array(v) for k, v in example.items()} for example in examples]
    for given_as in (examples, by_column, arrays, pa.Table.from_pylist(examples)):
        found = pad_batch(given_as, padding_values=values)
        assert list(found) == list(expected)
        assert {name: column.tolist() for name, column in found.items()} == expected
        assert found["weight"].dtype == torch.float32
        assert found["box"].dtype == torch.int64


def test_columns_of_one_value_are_not_always_ones():
    examples = [{"input_ids": [1, 2], "types": [3, 3]}, {"input_ids": [3], "types": [0]}]
    values = {"input_ids": 0, "types": 9}
    found = pad_batch(examples, padding_values=values)
    assert found["types"].tolist() == [[3, 3], [0, 9]]
    assert found["attention_mask"].tolist() == [[1, 1], [1, 0]]
    found = pad_batch(examples, padding_values=values, attention_mask=False)
    assert list(found) == ["input_ids", "types"]


def test_empty_rows_and_no_rows():
    assert pad_rows([]).shape == (0, 0)
    assert pad_rows([[], []]).shape == (2, 0)
    assert pad_rows([np.array([])]).shape == (1, 0)  # NumPy's own empty array is one of floats
    assert pad_rows([[]], pad_to_multiple_of=8).shape == (1, 0)
    assert pad_rows(pa.chunked_array([], pa.list_(pa.int64()))).shape == (0, 0)
    assert flatten_rows([])[1].tolist() == [0]
    found = pad_batch([{"input_ids": []}], padding_values={"input_ids": 0})
    assert found["attention_mask"].shape == (1, 0)


def test_a_long_list_is_a_row():
    row = list(range(1 << 20))
    assert torch.equal(pad_rows([row, row[:5]])[0], torch.arange(1 << 20))


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        ([[1, 2.0]], TypeError, r"row 0 of rows holds 2\.0 \(float\) at 1, not an integer"),
        ([[1], [None]], TypeError, r"row 1 of rows holds None \(NoneType\) at 0"),
        ([["a"]], TypeError, r"holds 'a' \(str\)"),
        ([[[1, 2]]], TypeError, "not one-dimensional"),
        ([[1 << 63]], ValueError, "does not fit in 64 bits"),
        ([[-1, -(1 << 63) - 1]], ValueError, "at 1, which does not fit"),
        ([np.array([1.5])], TypeError, "must hold integers, got float64"),
        ([torch.tensor([1.5])], TypeError, "must hold integers, got float32"),
        ([np.array([1]), np.array(["a"])], TypeError, "row 1 of rows must hold integers, got <U1"),
        ([np.array([1, None], object)], TypeError, r"holds None \(NoneType\) at 1"),
        ([np.array([[1]])], ValueError, r"row 0 of rows must be one-dimensional, got shape \(1, 1"),
        ([np.array([1]), torch.tensor([[1]])], ValueError, "row 1 of rows must be one-dim"),
        ([np.array(3)], ValueError, r"one-dimensional, got shape \(\)"),
        ([np.array([1 << 63], np.uint64)], ValueError, "9223372036854775808, which does not fit"),
        ([[1], 5], TypeError, "row 1 of rows must be a sequence of integers, got int"),
        ([[1], "ab"], TypeError, "row 1 of rows must be a sequence of integers, got str"),
        ([np.array([1]), [2, 0.5]], TypeError, r"row 1 of rows.* holds 0\.5"),
        ([np.array([1.5]), [2]], TypeError, "^row 0 of rows must hold integers, got float64"),
        ([np.array([1, None], object), [2]], TypeError, "^row 0 of rows holds None"),
        ([torch.tensor([1.5], requires_grad=True)], TypeError, "must hold integers, got float32"),
        ([torch.tensor([1], dtype=torch.bfloat16)], TypeError, "integers, got bfloat16"),
        ([torch.empty(2, dtype=torch.int64, device="meta")], TypeError, "got a meta one"),
        ([torch.tensor([1, 2]).to_sparse()], TypeError, "must be a dense tensor"),
        ([np.ma.array([1, 2], mask=[0, 1])], ValueError, "row 0 of rows has masked values"),
        ([{1, 2}], TypeError, "row 0 of rows must be a sequence of integers, got set"),
        ([{1: 2}], TypeError, "row 0 of rows must be a sequence of integers, got dict"),
        ([bytearray(b"ab")], TypeError, "must be a sequence of integers, got bytearray"),
        ({(1, 2)}, TypeError, "rows must be rows of integers, got set"),
        (np.array(3), TypeError, r"rows must be rows of integers, got shape \(\)"),
        (np.zeros((1, 2, 3), int), ValueError, r"row 0 .* one-dimensional, got shape \(2, 3\)"),
        (pa.array([[1, 2], None], pa.list_(pa.int64(), 2)), ValueError, "1 null rows"),
        (pa.array([[1, None]], pa.list_(pa.int64(), 2)), ValueError, "1 nulls inside rows"),
        (pa.table({"a": [[1]]}), TypeError, "must be an Arrow list column, got Table"),
        ("abc", TypeError, "rows must be rows of integers, got str"),
        (5, TypeError, "rows must be rows of integers, got int"),
        (np.array([1, 2]), TypeError, "row 0 of rows must be a sequence of integers, got int64"),
        (pa.array([[1], None]), ValueError, "1 null rows"),
        (pa.array([[1, None]]), ValueError, "1 nulls inside rows"),
        (pa.array([[1.5]]), TypeError, "must hold integers, got double"),
        (pa.array([1, 2]), TypeError, "must be an Arrow list column, got int64"),
    ],
)
def test_bad_rows_are_refused(rows, error, text):
    with pytest.raises(error, match=text):
        pad_rows(rows)
    with pytest.raises(error, match=text):
        flatten_rows(rows)


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        ([], "the batch is empty"),
        ([{"ids": [1]}], r"no column 'input_ids'; they have \['ids'\]"),
        ([{"input_ids": [1], "x": [1]}, {"input_ids": [1]}], "example 1 has no column 'x'"),
        ([{"input_ids": [1, 2], "mask": [1]}], "row 0 has 2 values in 'input_ids' but 1 in 'mask'"),
        ({"input_ids": [[1]], "mask": [[1], [1]]}, "'mask' has 2 rows, 'input_ids' has 1"),
        (
            [{"input_ids": [1], "tags": [1]}, {"input_ids": [1], "tags": [1, 2]}],
            "column 'tags' cannot become a tensor",
        ),
        ([{"input_ids": [1], "text": "hello"}], "column 'text' cannot become a tensor"),
        ({"input_ids": [[1], [2]], "x": [1]}, "column 'x' has 1 rows, 'input_ids' has 2"),
    ],
)
def test_bad_batches_are_refused(examples, text):
    with pytest.raises(ValueError, match=text):
        pad_batch(examples, padding_values={"input_ids": 0, "mask": 0})


@pytest.mark.parametrize(
    ("examples", "values", "text"),
    [
        ([[1], [2]], {"input_ids": 0}, "example 0 must be a mapping, got list"),
        ([{"input_ids": [1]}, None], {"input_ids": 0}, "example 1 must be a mapping, got NoneType"),
        (None, {"input_ids": 0}, "must be a list of mappings, got NoneType"),
        ("ab", {"input_ids": 0}, "must be a sequence of mappings, got str 'ab'"),
        ({"input_ids": [[1]], "x": 5}, {"input_ids": 0}, "column 'x' must have a value for each"),
        ([{"input_ids": [1]}], {}, "padding_values must be a mapping"),
        ([{"input_ids": [1]}], ["input_ids"], "padding_values must be a mapping"),
        ([{"input_ids": [1]}], {"input_ids": None}, "padding value of input_ids must be an int"),
    ],
)
def test_what_is_no_batch_is_refused(examples, values, text):
    with pytest.raises(TypeError, match=text):
        pad_batch(examples, padding_values=values)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"padding_value": 0.5}, TypeError, "padding value of rows must be an int, got float"),
        ({"padding_value": 1 << 63}, ValueError, "does not fit in 64 bits"),
        ({"pad_to_multiple_of": 8.0}, TypeError, "must be an int, got float"),
        ({"padding_side": "top"}, ValueError, 'must be "left" or "right"'),
        ({"pad_to_multiple_of": 0}, ValueError, "must be positive, got 0"),
        ({"dtype": torch.int16}, TypeError, "must be torch.int32 or torch.int64"),
        ({"backend": "triton"}, ValueError, "tensors are on cpu"),
        ({"backend": "fast"}, ValueError, "expected one of"),
        ({"dtype": torch.int32, "padding_value": 1 << 31}, ValueError, "does not fit in int32"),
    ],
)
def test_bad_options_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        pad_rows([[1]], **options)


def test_what_does_not_fit_in_int32_is_refused():
    with pytest.raises(ValueError, match=r"goes from -5 to 2147483648, .* int32"):
        pad_rows([[-5, 1 << 31]], dtype=torch.int32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_pinned_memory_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="pin_memory=True needs a GPU"):
        pad_rows([[1]], pin_memory=True)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_packed_rows_are_rows(backend, dtype):
    packed = flatten_rows(ROWS)
    assert isinstance(packed, PackedRows)
    typed = PackedRows(packed.values.to(dtype), packed.cu_seqlens.to(dtype))
    strided = PackedRows(typed.values.repeat_interleave(2)[::2], typed.cu_seqlens)
    for rows in (typed, strided):
        found = pad_rows(rows, padding_value=8, backend=backend)
        assert found.tolist() == padded(ROWS, 8)
        batch = pad_batch({"input_ids": rows}, padding_values={"input_ids": 8}, backend=backend)
        assert batch["input_ids"].tolist() == padded(ROWS, 8)
        assert batch["attention_mask"].sum() == packed.values.numel()
    full = PackedRows(torch.arange(6), torch.tensor([0, 3, 6]))
    pad_rows(full, backend=backend).zero_()
    assert full.values.tolist() == list(range(6))  # the batch is in memory of its own


def test_packed_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to 3"):
        pad_rows(PackedRows(torch.arange(3), torch.tensor([0, 2])))
    with pytest.raises(TypeError, match=r"int32 or int64, got torch\.float32"):
        pad_rows(PackedRows(torch.ones(3), torch.tensor([0, 3])))
