"""Masked diffusion: times and masks of the contract, weights, divisors, and what is refused."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from maskft import (
    DataCollatorForLanguageModeling,
    DataCollatorForSpanCorruption,
    DataCollatorWithPacking,
    Plan,
    Tokens,
    UnmaskedCollator,
    mask_batch,
)
from maskft.collate.labels import weighing_columns
from maskft.strategy import Diffusion
from maskkernels import MaskingPolicy, mask_tokens
from tests.support import contract
from tests.support.device import DEVICE, on_device

SEED = 5


def squared(u):
    return u**2


def quarter(u):
    return torch.full_like(u, 0.25)


def three(p):
    return torch.full_like(p, 3.0)


def make(tokenizer, strategy="diffusion", kind=DataCollatorForLanguageModeling, **options):
    return kind(tokenizer, strategy=strategy, **{"rng": "sample", "seed": SEED} | options)


def expected_row(tokenizer, ids, *, eps=1e-3, times=lambda u: u, epoch=0, shares=(1.0, 0.0)):
    """(t, p, input_ids, labels) of a row, in plain Python, from the contract's text."""
    word = contract.word(SEED, epoch, 10, contract.row_hash(dict(enumerate(ids))), 0)
    t = times((word + 0.5) / 2.0**32)
    p = (1 - eps) * t + eps
    policy = MaskingPolicy(
        tokenizer.mask_token_id, len(tokenizer), mask_share=shares[0], random_share=shares[1]
    )
    maskable = [i not in tokenizer.all_special_ids for i in range(len(tokenizer))]
    seen, labels = contract.mask_row(
        ids, policy=policy, seed=SEED, epoch=epoch, maskable=maskable, rates=[p] * len(ids)
    )
    return t, p, seen, labels


def maskable_tokens(tokenizer, ids):
    return sum(i not in tokenizer.all_special_ids for i in ids)


@pytest.mark.parametrize("epoch", [0, 3])
def test_times_and_masks_are_those_of_the_contract(tokenizer, rows, epoch):
    collator = make(tokenizer)
    collator.set_epoch(epoch)
    batch = collator(rows)
    times = set()
    for i, row in enumerate(rows):
        ids, n = row["input_ids"], len(row["input_ids"])
        t, p, seen, labels = expected_row(tokenizer, ids, epoch=epoch)
        times.add(t)
        assert batch["input_ids"][i, :n].tolist() == seen
        assert batch["labels"][i, :n].tolist() == labels
        weights = [np.float32(1 / p) if label != -100 else 0.0 for label in labels]
        assert batch["label_weights"][i, :n].tolist() == weights
        assert not batch["label_weights"][i, n:].any()
        assert batch["num_items"][i] == maskable_tokens(tokenizer, ids)
    assert batch["label_weights"].dtype == torch.float32
    assert batch["num_items"].dtype == torch.int64
    assert len(times) == len({tuple(row["input_ids"]) for row in rows})


LAWS = {
    "a range": ((0.2, 0.6), lambda u: 0.2 + (0.6 - 0.2) * u),
    "one time": ((0.5, 0.5), lambda u: 0.5),
    "a function": (squared, lambda u: u**2),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_other_laws_of_t(tokenizer, rows, law, eps):
    times, plain = LAWS[law]
    batch = make(tokenizer, Diffusion(eps, times, weights=three))(rows)
    for i, row in enumerate(rows):
        ids, n = row["input_ids"], len(row["input_ids"])
        _, _, seen, labels = expected_row(tokenizer, ids, eps=eps, times=plain)
        assert batch["input_ids"][i, :n].tolist() == seen
        assert batch["labels"][i, :n].tolist() == labels
    labelled = batch["labels"] != -100
    assert torch.equal(batch["label_weights"], torch.where(labelled, 3.0, 0.0))


def test_selected_tokens_become_the_mask_token(tokenizer, rows):
    batch = make(tokenizer)(rows)
    labelled = batch["labels"] != -100
    assert labelled.any()
    assert (batch["input_ids"][labelled] == tokenizer.mask_token_id).all()
    assert (batch["input_ids"] == tokenizer.mask_token_id).sum() == labelled.sum()


def test_shares_may_be_others(tokenizer, rows):
    shares = (0.5, 0.3)
    strategy = Diffusion(shares=shares)
    said_twice = make(tokenizer, strategy, mask_replace_prob=0.5, random_replace_prob=0.3)(rows)
    said_once = make(tokenizer, strategy)(rows)
    for i, row in enumerate(rows):
        ids = row["input_ids"]
        _, _, seen, labels = expected_row(tokenizer, ids, shares=shares)
        for found in (said_twice, said_once):
            assert found["input_ids"][i, : len(ids)].tolist() == seen
            assert found["labels"][i, : len(ids)].tolist() == labels


def test_masks_are_nested_in_t(tokenizer, rows):
    chosen = [
        make(tokenizer, Diffusion(times=(t, t)))(rows)["labels"] != -100
        for t in (0.1, 0.3, 0.7, 1.0)
    ]
    for fewer, more in itertools.pairwise(chosen):
        assert not (fewer & ~more).any()
    ids = make(tokenizer, Diffusion(times=(1, 1)))(rows)
    special = torch.isin(ids["input_ids"], torch.tensor([2, 3, 0]))
    assert torch.equal(chosen[-1], ~special)


DIVISORS = {
    "maskable": lambda tokenizer, ids, length: maskable_tokens(tokenizer, ids),
    "batch": lambda tokenizer, ids, length: length,
    "sequence": lambda tokenizer, ids, length: 1,
}


@pytest.mark.parametrize("normalize", DIVISORS)
def test_what_the_loss_is_divided_by(tokenizer, rows, normalize):
    batch = make(tokenizer, Diffusion(normalize=normalize))(rows)
    length = batch["input_ids"].shape[1]
    for i, row in enumerate(rows):
        ids = row["input_ids"]
        _, p, _, labels = expected_row(tokenizer, ids)
        assert batch["num_items"][i] == DIVISORS[normalize](tokenizer, ids, length)
        each = 1 / p / (maskable_tokens(tokenizer, ids) if normalize == "sequence" else 1)
        found = batch["label_weights"][i, : len(ids)].tolist()
        assert found == [np.float32(each) if label != -100 else 0.0 for label in labels]


@pytest.mark.parametrize("normalize", DIVISORS)
@pytest.mark.parametrize("mask_only", ["answer", 1])
def test_only_answers_are_masked_and_counted(tokenizer, rows, normalize, mask_only):
    made = []
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        answer = [int(j >= n // 2) if i else 0 for j in range(n)]  # the first row has no answer
        made.append({**row, "token_type_ids": answer} | ({"answer": answer}))
    if mask_only == 1:
        made = [{k: v for k, v in row.items() if k != "answer"} for row in made]
    batch = make(tokenizer, Diffusion(normalize=normalize), mask_only=mask_only)(made)
    length = batch["input_ids"].shape[1]
    assert (batch["labels"][1:] != -100).any()
    assert not (batch["labels"][0] != -100).any()
    for i, row in enumerate(made):
        answer = [t for t, a in zip(row["input_ids"], row["token_type_ids"], strict=True) if a]
        size = maskable_tokens(tokenizer, answer)
        _, p, _, labels = expected_row(tokenizer, row["input_ids"])
        kept = [
            label if a else -100 for label, a in zip(labels, row["token_type_ids"], strict=True)
        ]
        assert batch["labels"][i, : len(kept)].tolist() == kept
        expected = {"maskable": size, "batch": length, "sequence": 1}[normalize]
        assert batch["num_items"][i] == expected
        each = 1 / p / (size if normalize == "sequence" and size else 1)
        weights = [np.float32(each) if label != -100 else 0.0 for label in kept]
        assert batch["label_weights"][i, : len(kept)].tolist() == weights


@pytest.mark.parametrize("rng", ["sample", "stream"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("normalize", DIVISORS)
def test_a_packed_batch_has_the_times_masks_and_weights_of_the_padded_one(
    tokenizer, rows, normalize, side, rng
):
    tokenizer.padding_side = side
    strategy = Diffusion(normalize=normalize)
    padded = make(tokenizer, strategy, rng=rng)(rows)
    real = padded["attention_mask"] != 0
    for extra in ({}, {"total_length": 400}):
        packed = make(
            tokenizer, strategy, DataCollatorWithPacking, rng=rng, attention="varlen", **extra
        )(rows)
        count = int(real.sum())
        for name in ("input_ids", "labels", "label_weights"):
            assert packed[name].shape == (1, extra.get("total_length", count))
            assert torch.equal(packed[name][0, :count], padded[name][real]), name
        assert (packed["labels"][0, count:] == -100).all()
        assert not packed["label_weights"][0, count:].any()
        items = padded["num_items"].sum()
        assert packed["num_items"].tolist() == [count if normalize == "batch" else int(items)]


@pytest.mark.parametrize("mask_only", [None, 0])
def test_the_batch_is_the_same_masked_on_the_device(tokenizer, rows, mask_only):
    for kind, more in (
        (DataCollatorForLanguageModeling, {"label_positions": 20}),
        (DataCollatorWithPacking, {"attention": "varlen", "label_positions": 300}),
    ):
        collator = make(tokenizer, kind=kind, mask_only=mask_only, **more)
        expected, found = collator(rows), mask_batch(UnmaskedCollator(collator)(rows), collator)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert found[name].dtype == value.dtype
                assert torch.equal(found[name], value), name


def test_arrays_hold_what_tensors_hold(tokenizer, rows):
    tensors, arrays = (make(tokenizer, return_tensors=kind)(rows) for kind in ("pt", "np"))
    assert arrays.keys() == tensors.keys()
    for name, value in tensors.items():
        assert isinstance(arrays[name], np.ndarray)
        assert np.array_equal(arrays[name], value.numpy())


def test_torch_mask_tokens_has_the_masks_without_the_weights(tokenizer, rows):
    batch = make(tokenizer)(rows[:1])
    ids = torch.tensor([rows[0]["input_ids"]])
    seen, labels = make(tokenizer).torch_mask_tokens(ids)
    assert torch.equal(seen, batch["input_ids"])
    assert torch.equal(labels, batch["labels"])


def test_label_positions_name_the_weighted_places(tokenizer, rows):
    batch = make(tokenizer, label_positions=30)(rows)
    assert batch["label_positions"].shape == (len(rows), 30)
    for places, weights in zip(batch["label_positions"], batch["label_weights"], strict=True):
        assert places[places >= 0].tolist() == weights.nonzero().flatten().tolist()


def test_antithetic_times_are_spread_over_the_batch(tokenizer, rows):
    seen = []

    def times(u):
        seen.append(u.tolist())
        return u

    plain = make(tokenizer, Diffusion(times=times))
    spread = make(tokenizer, Diffusion(times=times, antithetic=True))
    plain(rows)
    spread(rows)
    n = len(rows)
    words = [
        contract.word(SEED, 0, 10, contract.row_hash(dict(enumerate(row["input_ids"]))), 1)
        for row in rows
    ]
    order = sorted(range(n), key=words.__getitem__)  # equal rows in the order of the batch
    assert seen[1] == [(order.index(i) + u) / n for i, u in enumerate(seen[0])]
    assert sorted(math.floor(u * n) for u in seen[1]) == list(range(n))
    fixed = spread.for_evaluation()
    assert torch.equal(fixed(rows[::-1])["labels"].flip(0), fixed(rows)["labels"])


def test_evaluation_times_are_strata_of_the_row_whatever_the_batch(tokenizer, rows):
    """Whatever training's law is: the bound is that of t uniform in (0, 1]."""
    training = Diffusion(
        0.0, (0.3, 0.4), "none", antithetic=True, normalize="sequence", shares=(0.5, 0.5)
    )
    collator = make(tokenizer, training)
    rows = [list(row["input_ids"]) for row in rows[:5]]
    for number in range(4):
        fixed = collator.for_evaluation(number, 4)
        epoch = (1 << 24) - 1 - number
        whole = fixed(rows)
        assert torch.equal(fixed(rows)["label_weights"], whole["label_weights"])
        for i, ids in enumerate(rows):
            times = lambda u, k=number: k / 4 + ((k + 1) / 4 - k / 4) * u  # noqa: E731
            t, p, seen, labels = expected_row(tokenizer, ids, times=times, epoch=epoch)
            assert number / 4 < t <= (number + 1) / 4
            alone = fixed([ids])
            for found in (alone["input_ids"][0], whole["input_ids"][i, : len(ids)]):
                assert found.tolist() == seen
            weights = [np.float32(1 / p) if label != -100 else 0.0 for label in labels]
            assert alone["label_weights"][0].tolist() == weights
            assert alone["num_items"].item() == maskable_tokens(tokenizer, ids)


def test_a_budget_selects_the_rounded_rate_of_each_row(tokenizer, rows):
    batch = make(tokenizer, selection="budget")(rows)
    for row, labels in zip(rows, batch["labels"], strict=True):
        ids = row["input_ids"]
        _, p, _, _ = expected_row(tokenizer, ids)
        size = maskable_tokens(tokenizer, ids)
        assert (labels != -100).sum() == (size * contract.T(p) + (1 << 31)) >> 32


def test_antithetic_times_do_not_follow_the_place_in_the_batch(tokenizer, rows):
    """A batch sorted by length would else see its longest rows at small times alone."""
    collator = make(tokenizer, Diffusion(antithetic=True, weights=torch.clone))  # weights are p
    rows = sorted(rows[:5], key=lambda row: -len(row["input_ids"]))
    strata = set()
    for epoch in range(40):
        collator.set_epoch(epoch)
        weights, turned = (collator(given)["label_weights"] for given in (rows, rows[::-1]))
        assert torch.equal(weights, turned.flip(0))
        strata |= {(i, int((p - 1e-3) / 0.999 * 5)) for i, p in enumerate(weights.max(1).values)}
    assert all((0, k) in strata for k in (1, 2, 3, 4))


def test_evaluation_of_a_bound_ignores_a_budget(tokenizer, rows):
    """round(p * n) is not p * n: the bound would be too low."""
    plain = make(tokenizer).for_evaluation()(rows)
    for options in ({}, {"strategy": Diffusion(weights="none"), "at_least_one": True}):
        training = make(tokenizer, **{"selection": "budget"} | options)
        batch = training.for_evaluation()(rows)
        assert torch.equal(batch["labels"], plain["labels"])
        assert torch.equal(batch["label_weights"], plain["label_weights"])
        assert training.selection == "budget"


def test_at_least_one_does_not_go_with_weights_of_the_rate(tokenizer):
    with pytest.raises(ValueError, match="at_least_one masks tokens at a rate above p"):
        make(tokenizer, selection="budget", at_least_one=True)


PLANS = {
    "a number of items": ({"num_items": 3}, TypeError, "num_items must be a tensor of int64"),
    "items of floats": ({"num_items": torch.ones(20)}, TypeError, "int64, got torch.float32"),
    "items of the batch": (
        {"num_items": torch.tensor(3)}, ValueError, r"a number for each of the 20 rows, got \(\)",
    ),
    "items of tokens": (
        {"num_items": torch.ones(20, 21).long()}, ValueError, r"20 rows, got \(20, 21\)",
    ),
    "a list of weights": ({"label_weights": [1.0]}, TypeError, "tensor of floats, got list"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_does_not_weigh_its_batch_is_refused(tokenizer, rows, name):
    plan, error, message = PLANS[name]
    with pytest.raises(error, match=message):
        make(tokenizer, lambda tokens: Plan(**plan))(rows)


def test_stream_draws_are_fresh_at_every_call_and_repeat_with_the_seed(tokenizer, rows):
    one, two = make(tokenizer, rng="stream"), make(tokenizer, rng="stream")
    first, second = one(rows), one(rows)
    assert not torch.equal(first["label_weights"], second["label_weights"])
    assert torch.equal(first["label_weights"], two(rows)["label_weights"])
    assert len(set(first["label_weights"].max(1).values.tolist())) > len(rows) // 2


def test_your_own_strategy_may_weigh_its_labels(tokenizer, rows):
    def later_weigh_more(tokens):
        place = torch.arange(tokens.input_ids.shape[1]).expand(tokens.input_ids.shape)
        return Plan(label_weights=place / 10)

    batch = make(tokenizer, later_weigh_more)(rows)
    labelled = batch["labels"] != -100
    place = torch.arange(labelled.shape[1]).expand(labelled.shape) / 10
    assert torch.equal(batch["label_weights"], torch.where(labelled, place, 0.0))
    assert "num_items" not in batch
    with pytest.raises(ValueError, match=r"label_weights must be like input_ids, \(20, 21\)"):
        make(tokenizer, lambda tokens: Plan(label_weights=torch.ones(3)))(rows)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("times", [(0, 1), (0.2, 0.7), squared])
@pytest.mark.parametrize("normalize", DIVISORS)
def test_a_plan_on_a_device_does_not_wait_for_it(packed, times, normalize):
    """Shapes and launches of the host's code; the values are tested elsewhere."""
    shape = (40,) if packed else (4, 10)
    with on_device() as launched:
        ids = torch.empty(shape, dtype=torch.int64, device=DEVICE)
        bounds = torch.empty(5, dtype=torch.int64, device=DEVICE) if packed else None
        maskable = torch.empty(133, dtype=torch.bool, device=DEVICE)
        tokens = Tokens(ids, 0.15, 1, 0, maskable=maskable, cu_seqlens=bounds)
        plan = Diffusion(times=times, normalize=normalize, antithetic=True).plan(tokens)
        columns = weighing_columns(plan.label_weights, plan.num_items, ids, rows=4)
        mask_tokens(
            ids, MaskingPolicy(4, 133), seed=1, rates=plan.rates, maskable=maskable,
            cu_seqlens=bounds, sample_ids=tokens.sample_ids(),
        )  # fmt: skip
    assert launched
    assert columns["label_weights"].shape == shape
    assert columns["num_items"].shape == (4,)


def test_collators_can_be_pickled(tokenizer, rows):
    collator = make(tokenizer, Diffusion(times=squared))
    expected = collator(rows)["label_weights"]
    assert torch.equal(pickle.loads(pickle.dumps(collator))(rows)["label_weights"], expected)


REFUSED = {
    "eps": ({"eps": 1.0}, ValueError, r"eps must be a number in \[0, 1\), got 1.0"),
    "eps of text": ({"eps": "0.1"}, ValueError, "eps must be a number"),
    "t of 0": ({"times": (0, 0)}, ValueError, r"times must be \(low, high\).*for t in \(0, 1\]"),
    "t above 1": ({"times": (0.5, 1.5)}, ValueError, r"times must be .*got \(0.5, 1.5\)"),
    "t below 0": ({"times": (-0.1, 1)}, ValueError, "times must be"),
    "a range backwards": ({"times": (0.6, 0.5)}, ValueError, "times must be"),
    "no range": ({"times": 0.5}, TypeError, "times must be a pair of numbers, got 0.5"),
    "a range of text": ({"times": "01"}, TypeError, "times must be a pair of numbers"),
    "weights": ({"weights": "1/t"}, ValueError, "weights must be one of"),
    "no largest weight": ({"eps": 0}, ValueError, "eps=0 with weights='1/p' has no largest"),
    "nor with a function": ({"eps": 0.0, "times": squared}, ValueError, "give eps=1e-3"),
    "normalize": ({"normalize": "token"}, ValueError, "normalize must be one of"),
    "shares": ({"shares": (0.8, 0.3)}, ValueError, "shares must be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_do_not_fit_are_refused(name):
    options, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        Diffusion(**options)


@pytest.mark.parametrize("value", [0.0, 1.5, -0.25, math.nan])
def test_a_time_outside_0_to_1_is_refused(tokenizer, rows, value):
    collator = make(tokenizer, Diffusion(times=lambda u: torch.full_like(u, value)))
    with pytest.raises(ValueError, match=r"times must return t in \(0, 1\], got"):
        collator(rows)
    collator = make(tokenizer, Diffusion(times=lambda u: 0.5))
    with pytest.raises(ValueError, match=r"times must return a tensor of shape \(20,\).*float"):
        collator(rows)
    collator = make(tokenizer, Diffusion(weights=lambda p: p[:1]))
    with pytest.raises(ValueError, match=r"weights must return a tensor of shape \(20,\)"):
        collator(rows)


def test_collators_that_cannot_are_refused(tokenizer, rows):
    for options, message in (
        ({"rng": "hf"}, "rng='hf' draws what Transformers' collator does"),
        ({"schedule": lambda done: 0.5}, "so it takes no schedule"),
        ({"mlm": False}, "which mlm=False does not"),
        ({"mask_replace_prob": 0.9}, "Diffusion.shares=.0.9, 0.1.."),
    ):
        with pytest.raises(ValueError, match=message):
            make(tokenizer, **options)

    class Own(DataCollatorForLanguageModeling):
        def torch_mask_tokens(self, inputs, special_tokens_mask=None, offset_mapping=None):
            return inputs, inputs

    with pytest.raises(ValueError, match="which Own cannot: it replaces torch_mask_tokens"):
        make(tokenizer, kind=Own)
    with pytest.raises(TypeError, match="strategy"):
        DataCollatorForSpanCorruption(tokenizer, strategy="diffusion")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="[PAD]")
    with pytest.raises(ValueError, match=r"add_special_tokens\(\{'mask_token': '\[MASK\]'\}\)"):
        make(tokenizer)
