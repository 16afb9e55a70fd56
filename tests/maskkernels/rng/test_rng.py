"""The random contract: published vectors, and every backend against plain integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkernels import hash_rows, random_words, threshold
from maskkernels.rng import reference
from tests.support.contract import philox, row_hash, splitmix64, word

BACKENDS = ("reference", "numba")
KNOWN = [  # Random123's kat_vectors for philox4x32-10: counter, key, output
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def signed(x):
    return x - (1 << 64) if x >> 63 else x


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    assert philox(counter, key) == expected
    words = reference.philox4x32(*(torch.tensor([c]) for c in counter), *key)
    assert [int(w) for w in words] == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_random_words_are_those_of_the_published_counters(backend, counter, key, expected):
    """index // 4, the sample's halves and epoch << 8 | stream spell the counter out."""
    index = counter[0] * 4 + torch.arange(4)
    found = random_words(
        torch.tensor(signed(counter[1] | counter[2] << 32)),
        index,
        seed=key[0] | key[1] << 32,
        epoch=counter[3] >> 8,
        stream=counter[3] & 0xFF,
        backend=backend,
    )
    assert found.tolist() == expected


def test_splitmix64_gives_the_published_word():
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert int(reference.splitmix64(torch.tensor([0]))) == signed(0xE220A8397B1DCDAF)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_row_of_the_contract_has_its_hash(backend):
    row = [101, 7592, 2088, 102]
    assert row_hash(dict(enumerate(row))) == 0x1CDBE112D370C414
    found = hash_rows(torch.tensor([row]), backend=backend)
    assert found.dtype == torch.int64
    assert found.tolist() == [0x1CDBE112D370C414]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 26)),
    st.integers(0, 255),
    st.lists(
        st.tuples(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, (1 << 34) - 1)), max_size=9
    ),
)
def test_every_backend_gives_the_words_of_the_contract(backend, seed, epoch, stream, places):
    samples = torch.tensor([s for s, _ in places], dtype=torch.int64)
    index = torch.tensor([i for _, i in places], dtype=torch.int64)
    found = random_words(samples, index, seed=seed, epoch=epoch, stream=stream, backend=backend)
    assert found.tolist() == [word(seed, epoch, stream, s % (1 << 64), i) for s, i in places]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, (1 << 31) - 1), max_size=9), st.integers(0, 3), st.integers(0, 3))
def test_a_hash_ignores_padding_and_packing(backend, row, before, after):
    expected = signed(row_hash(dict(enumerate(row))))
    padded = torch.tensor([[7] * before + row + [8] * after], dtype=torch.int64)
    keep = torch.tensor([[0] * before + [1] * len(row) + [0] * after])
    assert hash_rows(padded, attention_mask=keep, backend=backend).tolist() == [expected]
    packed = torch.tensor([7] * before + row + [8] * after, dtype=torch.int32)
    bounds = torch.tensor([0, before, before + len(row), before + len(row) + after])
    assert hash_rows(packed, cu_seqlens=bounds, backend=backend)[1] == expected


def test_thresholds_are_exact_at_the_ends():
    assert threshold(0.0) == 0
    assert threshold(1.0) == 1 << 32
    assert threshold(0.5) == 1 << 31
    assert threshold(2.0**-32) == 1
    assert threshold(0.6 * 2.0**-32) == 0


@pytest.mark.parametrize("p", [True, "0.5", None])
def test_a_threshold_wants_a_number(p):
    with pytest.raises(TypeError, match="must be a number"):
        threshold(p)


@pytest.mark.parametrize("p", [-1e-9, 1.0000001, float("nan"), float("inf")])
def test_a_threshold_wants_a_probability(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold(p)


def test_words_broadcast():
    samples, index = torch.arange(3)[:, None], torch.arange(5)[None]
    assert random_words(samples, index, seed=1).shape == (3, 5)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
        ({"seed": 1 << 64}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
        ({"seed": 1.0}, TypeError, "seed must be an int"),
        ({"seed": True}, TypeError, "seed must be an int"),
        ({"epoch": -1}, ValueError, "epoch must not be negative"),
        ({"epoch": 0.5}, TypeError, "epoch must be an int"),
        ({"stream": 256}, ValueError, "stream must be in"),
        ({"stream": 1.5}, TypeError, "stream must be an int, got float"),
        ({"stream": True}, TypeError, "stream must be an int, got bool"),
        ({"index": torch.tensor([1 << 34])}, ValueError, r"index must be in \[0, 2\*\*34\)"),
        ({"index": torch.tensor([-1])}, ValueError, r"index must be in .*, got -1"),
        ({"sample_ids": torch.arange(4)}, ValueError, r"\(4,\) and index \(3,\) do not broadcast"),
        ({"index": torch.arange(3).int()}, TypeError, "index must be an int64 tensor"),
        ({"sample_ids": [1]}, TypeError, "sample_ids must be an int64 tensor"),
        ({"backend": "cuda"}, ValueError, "expected one of"),
        ({"backend": "triton"}, ValueError, "backend='triton': tensors are on cpu"),
        ({"index": torch.arange(3, device="meta")}, ValueError, "index on meta"),
    ],
)
def test_bad_arguments_are_refused(change, error, text):
    arguments = {"sample_ids": torch.tensor(0), "index": torch.arange(3), "seed": 0} | change
    samples, index = arguments.pop("sample_ids"), arguments.pop("index")
    with pytest.raises(error, match=text):
        random_words(samples, index, **arguments)
