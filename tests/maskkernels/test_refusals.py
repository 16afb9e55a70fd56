"""Arguments that do not fit are refused with their name, whatever they are."""

import math

import numpy as np
import pytest
import torch

from maskkernels import (
    Denoiser,
    MaskingPolicy,
    PackedRows,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    corrupted_lengths,
    geometric_lengths,
    hash_rows,
    linear_cross_entropy,
    mask_tokens,
    masked_cross_entropy,
    pack_rows,
    pad_batch,
    pad_corrupted,
    pad_rows,
    random_words,
    rates_from_weights,
    replace_tokens,
    span_units,
    threshold,
    ul2_denoisers,
    units_from_offsets,
    units_from_word_ids,
    word_units,
)

IDS, SAMPLES, V = torch.arange(20).view(2, 10), torch.arange(2), 97
POLICY, TABLE = MaskingPolicy(3, V), torch.ones(V, dtype=torch.uint8)
LOGITS, LABELS = torch.zeros(4, 5), torch.arange(1, 5)
SENTINELS = range(900, 950)
ROWS = corrupt_spans(IDS, SpanCorruption(SENTINELS), seed=1, backend="reference")
HUGE = 10**400  # no float holds it
EMPTY = torch.ones(0, dtype=torch.bool)


def corruption(**fields):
    return SpanCorruption(SENTINELS, **fields)


def padded(rows=ROWS, **changes):
    return pad_corrupted(rows, **{"input_length": 20, "target_length": 20, **changes})


def spans(lengths, units=IDS * 0):
    return span_units(units, lengths, sample_ids=SAMPLES, seed=1)


def loss(**options):
    return masked_cross_entropy(LOGITS, LABELS, **options)


def replaced(positions, sampled=SAMPLES[:1], labels=IDS):
    return replace_tokens(IDS, labels, sampled, positions=positions)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: corruption(final_sentinel=-1), TypeError, "final_sentinel must be True or"),
        (lambda: corruption(final_sentinel=2), TypeError, "final_sentinel must be True or"),
        (lambda: corruption(denoisers=None), TypeError, "denoisers must be a sequence"),
        (lambda: corruption(denoisers=[Denoiser(share=1e308)] * 3), ValueError, "shares of"),
        (lambda: corruption(denoisers=torch.tensor(3)), TypeError, "denoisers must be a sequence"),
        (lambda: corruption(denoisers=[3]), TypeError, "denoisers must hold Denoisers, got 3"),
        (lambda: corruption(edge_token_ids=torch.tensor(3)), TypeError, "edge_token_ids must be a"),
        (lambda: ul2_denoisers(s_token_id=-1), ValueError, r"s_token_id must be in .* got -1"),
        (lambda: spans(torch.tensor(0.5)), TypeError, "lengths must be a sequence of numbers, got"),
        (lambda: pad_rows([[1]], pin_memory="no"), TypeError, "pin_memory must be True or False"),
        (
            lambda: pad_batch(torch.tensor(3), padding_values={"a": 0}),
            TypeError,
            "examples must be",
        ),
        (
            lambda: mask_tokens(IDS, POLICY, seed=1, capacity=1 << 31),
            ValueError,
            r"capacity must be below 2\*\*31, got 2147483648",
        ),
        (lambda: Denoiser(prefix="x"), TypeError, "prefix must be True or False"),
        (lambda: Denoiser(share=HUGE), ValueError, "share must be a number that a float"),
        (lambda: Denoiser(mean_span_length=math.nan), ValueError, "mean_span_length must be in"),
        (lambda: TextInfilling(4, permute_sentences="x"), TypeError, "permute_sentences must be"),
        (
            lambda: MaskingPolicy(3, V, selection="budget", at_least_one=2),
            TypeError,
            "at_least_one must be True or False",
        ),
        (lambda: MaskingPolicy(3, V, rate=HUGE), ValueError, "rate must be a number that a float"),
        (lambda: corrupted_lengths("x"), ValueError, "length must be an int"),
        (lambda: corrupted_lengths(5, "x"), TypeError, "denoiser must be a Denoiser, got str"),
        (lambda: corrupted_lengths(5, eos="x"), TypeError, "eos must be True or False"),
        (lambda: corrupted_lengths(5, final_sentinel=7), TypeError, "final_sentinel must be"),
        (lambda: padded(padding_value=1.5), TypeError, "padding_value must be an int"),
        (lambda: padded(padding_value=1 << 63), ValueError, "padding_value must be below"),
        (lambda: padded(ignore_index="x"), TypeError, "ignore_index must be an int"),
        (lambda: padded(input_length=1 << 62), ValueError, "input_length must be below"),
        (
            lambda: padded(ROWS._replace(cu_seqlens=torch.tensor([0, 10, 5]))),
            ValueError,
            r"^cu_seqlens must rise, in \[0, 20\]",
        ),
        (
            lambda: padded(ROWS._replace(target_cu_seqlens=torch.tensor([0, 6, 99]))),
            ValueError,
            "^target_cu_seqlens must rise",
        ),
        (lambda: padded(ROWS._replace(target_ids=None)), TypeError, "target_ids must be a torch"),
        (lambda: padded(ROWS._replace(cu_seqlens=SAMPLES)), ValueError, r"must both be \[B \+ 1\]"),
        (lambda: loss(label_smoothing="x"), TypeError, "label_smoothing must be a number"),
        (lambda: loss(label_smoothing=math.nan), ValueError, "label_smoothing must be between"),
        (lambda: loss(z_loss=None), TypeError, "z_loss must be a number"),
        (lambda: loss(softcap="x"), TypeError, "softcap must be a number"),
        (lambda: loss(logit_scale="x"), TypeError, "logit_scale must be a number"),
        (lambda: loss(ignore_index=1 << 63), ValueError, "ignore_index must be below"),
        (lambda: loss(top_k=1 << 63), ValueError, "top_k must be below"),
        (lambda: loss(num_items=HUGE), ValueError, "num_items must be a number that a float"),
        (
            lambda: linear_cross_entropy(LOGITS, LOGITS, LABELS, capacity=1 << 63),
            ValueError,
            "capacity must be below",
        ),
        (
            lambda: linear_cross_entropy(LOGITS, LOGITS, LABELS, chunk_bytes=1 << 63),
            ValueError,
            "chunk_bytes must be below",
        ),
        (
            lambda: mask_tokens(IDS, POLICY, seed=1, capacity=1 << 63),
            ValueError,
            "capacity must be below",
        ),
        (lambda: spans(None), TypeError, "lengths must be a sequence of numbers, got NoneType"),
        (lambda: spans("ab"), TypeError, "lengths must be a sequence of numbers, got str"),
        (lambda: spans([1, None]), TypeError, r"lengths\[1\] must be a number, got NoneType"),
        (lambda: spans([1e308] * 3), ValueError, "lengths must be .* sum that is finite"),
        (lambda: geometric_lengths("x"), TypeError, "p must be a number"),
        (lambda: threshold(HUGE), ValueError, "a probability must be a number"),
        (lambda: rates_from_weights(None, IDS, 0.1), TypeError, "weights must be a torch.Tensor"),
        (lambda: rates_from_weights(IDS * 1.0, IDS, "x"), TypeError, "rate must be a number"),
        (lambda: rates_from_weights(IDS * 1.0, IDS, 2), ValueError, "rate must be between"),
        (lambda: replaced([1]), TypeError, "positions must be a torch.Tensor, got list"),
        (lambda: replaced(torch.tensor([20])), ValueError, "positions must be below 20 tokens"),
        (lambda: replaced(torch.tensor([1.0])), TypeError, "positions must be int32 or int64"),
        (lambda: replaced(SAMPLES[:1], None), TypeError, "sampled_ids must be a torch.Tensor"),
        (lambda: replaced(SAMPLES[:1], torch.ones(1)), TypeError, "sampled_ids must be int32"),
        (lambda: replaced(SAMPLES[:1], labels=None), TypeError, "labels must be a torch.Tensor"),
        (lambda: replaced(SAMPLES[:1], labels=IDS / 2), TypeError, "labels must be int32 or"),
        (lambda: word_units(IDS, TABLE[:0]), ValueError, "table must have an entry .* got none"),
        (
            lambda: word_units(IDS, TABLE, maskable=EMPTY),
            ValueError,
            "maskable must have an entry .* got none",
        ),
        (lambda: pack_rows(np.array([2**63 + 5], "uint64"), 8), ValueError, "not fit in 64 bits"),
        (lambda: pad_rows([[1]], pad_to_multiple_of=1 << 62), ValueError, "pad_to_multiple_of"),
        (lambda: pad_rows(PackedRows(IDS, None)), TypeError, "cu_seqlens of rows must be"),
        (lambda: hash_rows(IDS, backend=["numba"]), TypeError, "backend must be a str, got list"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, error, text):
    with pytest.raises(error, match=text):
        call()


SPARSE, SPARSE_RATES = IDS.to_sparse(), (IDS / 20).to_sparse()
CALLS = {
    "input_ids": lambda ids: hash_rows(ids),
    "attention_mask": lambda ids: mask_tokens(IDS, POLICY, seed=1, attention_mask=ids),
    "special_tokens_mask": lambda ids: word_units(IDS, TABLE, special_tokens_mask=ids),
    "units": lambda ids: mask_tokens(IDS, POLICY, seed=1, units=ids),
    "groups": lambda ids: word_units(IDS, TABLE, groups=ids),
    "word_ids": lambda ids: units_from_word_ids(IDS, ids),
    "labels": lambda ids: replace_tokens(IDS, ids, IDS),
    "sampled_ids": lambda ids: replace_tokens(IDS, IDS, ids),
    "index": lambda ids: random_words(IDS, ids, seed=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_sparse_tensors_are_refused_by_name(name):
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got a sparse_coo one"):
        CALLS[name](SPARSE)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_by_name():
    nested = torch.nested.nested_tensor([IDS[0], IDS[1, :3]])
    for name in ("input_ids", "attention_mask", "sampled_ids"):
        with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got a nested one"):
            CALLS[name](nested)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("table", lambda: word_units(IDS, TABLE.to_sparse())),
        ("rates", lambda: mask_tokens(IDS, POLICY, seed=1, rates=SPARSE_RATES)),
        ("weights", lambda: rates_from_weights(SPARSE_RATES, IDS * 0, 0.1)),
        ("sample_ids", lambda: mask_tokens(IDS, POLICY, seed=1, sample_ids=SAMPLES.to_sparse())),
        ("cu_seqlens", lambda: hash_rows(IDS[0], cu_seqlens=torch.tensor([0, 10]).to_sparse())),
        ("offset_mapping", lambda: units_from_offsets(IDS, torch.stack([IDS, IDS], 2).to_sparse())),
        ("logits", lambda: masked_cross_entropy(LOGITS.to_sparse(), LABELS)),
        ("class_weights", lambda: loss(class_weights=LOGITS[0].to_sparse())),
        ("num_items", lambda: loss(num_items=torch.tensor(1).to_sparse())),
        ("lengths", lambda: pack_rows(LABELS.to_sparse(), 8)),
    ],
)
def test_every_sparse_argument_is_refused_by_name(name, call):
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor"):
        call()


def test_lengths_come_as_a_tensor_too():
    assert torch.equal(spans(torch.tensor([0.5, 0.5])), spans([0.5, 0.5]))


def test_a_window_of_any_size_is_all_rows():
    assert pack_rows([5, 3, 4, 4], 8, window=1 << 70).blocks() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("num_items", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
def test_0_items_have_one_answer_as_a_number_and_as_a_tensor(num_items, backend):
    """0 where nothing is labelled, gradients too; a sum over 0 where something is."""
    logits = torch.ones(4, 5, requires_grad=True)
    options = {"num_items": num_items, "backend": backend}
    output = masked_cross_entropy(logits, torch.full((4,), -100), **options)
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert not logits.grad.any()
    assert masked_cross_entropy(logits, LABELS, **options).loss.item() == math.inf
