"""Every option that does not fit is refused with its name, its value and what would fit."""

import math
import sys

import numpy as np
import pytest
import torch

from maskft import (
    DataCollatorForLanguageModeling,
    DataCollatorForSpanCorruption,
    DataCollatorForTextInfilling,
    DataCollatorWithPacking,
    PackedBatchSampler,
    RateSchedule,
)
from maskft.strategy import Entity
from tests.support.small import build_wordpiece

HUGE = 10**400  # no float holds it


@pytest.fixture(scope="module")
def tokenizer():
    return build_wordpiece()


def make(tokenizer, **options):
    return DataCollatorForLanguageModeling(tokenizer, **options)


def corruption(tokenizer, **options):
    return DataCollatorForSpanCorruption(tokenizer, sentinel_ids=range(100, 150), **options)


def infilling(tokenizer, **options):
    return DataCollatorForTextInfilling(tokenizer, **{"sentence_end_ids": [5], **options})


def packed(tokenizer, **options):
    return DataCollatorWithPacking(tokenizer, attention="block_diagonal", **options)


@pytest.mark.parametrize(
    ("make", "options", "error", "text"),
    [
        (make, {"mlm_probability": "0.15"}, TypeError, "mlm_probability must be a number, got str"),
        (make, {"mlm_probability": True}, TypeError, "mlm_probability must be a number, got bool"),
        (make, {"mlm_probability": torch.tensor(0.1)}, TypeError, "mlm_probability must be a num"),
        (make, {"mask_replace_prob": HUGE}, ValueError, "mask_replace_prob must be .* float can"),
        (make, {"random_replace_prob": "x"}, TypeError, "random_replace_prob must be a number"),
        (make, {"at_least_one": -1}, TypeError, "at_least_one must be True or False, got -1"),
        (make, {"seed": math.nan}, TypeError, "seed must be an int, got float"),
        (make, {"seed": "3"}, TypeError, "seed must be an int, got str"),
        (make, {"sample_id_column": 0}, TypeError, "sample_id_column must be the name .* got 0"),
        (make, {"mask_only": 1 << 63}, ValueError, "mask_only must be the name .* got 9223372"),
        (make, {"mask_only": math.nan}, ValueError, "mask_only must be the name .* got nan"),
        (make, {"mask_only": True}, ValueError, "mask_only must be the name .* got True"),
        (make, {"mask_only": torch.tensor(1)}, ValueError, "mask_only must be .* got tensor"),
        (
            make,
            {"replacement_ids": torch.tensor(3)},
            ValueError,
            "replacement_ids must be .* ten",
        ),
        (make, {"label_positions": 1 << 63}, ValueError, "label_positions must be .* got 9223372"),
        (corruption, {"max_length": 1 << 70}, ValueError, r"max_length must be less than 2\*\*63"),
        (corruption, {"max_length": "9"}, TypeError, "max_length must be an integer, got '9'"),
        (corruption, {"max_length": True}, TypeError, "max_length must be an integer, got True"),
        (corruption, {"sample_id_column": 0}, TypeError, "sample_id_column must be the name"),
        (corruption, {"return_tensors": "jax"}, ValueError, "return_tensors .* got 'jax'"),
        (corruption, {"denoisers": torch.tensor(3)}, TypeError, "denoisers must be a sequence of"),
        (infilling, {"mask_ratio": 1 << 63}, ValueError, r"mask_ratio must be in \(0, 1\), got 92"),
        (infilling, {"mask_ratio": "0.3"}, TypeError, "mask_ratio must be a number, got str"),
        (
            infilling,
            {"sentence_end_ids": 0},
            TypeError,
            "sentence_end_ids must be a seq.* got int 0",
        ),
        (packed, {"total_length": True}, TypeError, "total_length must be an integer, got True"),
    ],
)
def test_options_of_collators(tokenizer, make, options, error, text):
    with pytest.raises(error, match=text):
        make(tokenizer, **options)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors carry notes from Python 3.11 on")
@pytest.mark.parametrize("value", [-0.1, 1.5, 1 << 63, -math.inf])
def test_the_errors_of_transformers_carry_the_values(tokenizer, value):
    text = r"^mlm_probability should be between 0 and 1\.\n"
    with pytest.raises(ValueError, match=text) as error:
        make(tokenizer, mlm_probability=value)
    expected = f"mlm_probability={value!r}, mask_replace_prob=0.8, random_replace_prob=0.1"
    assert error.value.__notes__ == [expected]


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", 1.0, None])
def test_epochs(tokenizer, value):
    for collator in (make(tokenizer), corruption(tokenizer)):
        with pytest.raises(TypeError, match=f"epoch must be an int, got {type(value).__name__}"):
            collator.set_epoch(value)


def test_integers_of_numpy_and_tensors_are_integers(tokenizer):
    rows = [[2, 40, 41, 42, 3]]
    expected = make(tokenizer, rng="sample", seed=3)
    for three in (np.int8(3), np.int64(3), np.array(3), torch.tensor(3)):
        collator = make(tokenizer, rng="sample", seed=three)
        expected.set_epoch(3)
        collator.set_epoch(three)
        assert torch.equal(collator(rows)["labels"], expected(rows)["labels"])
    make(tokenizer, replacement_ids=torch.tensor([50, 60]))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: RateSchedule("linear", begin="x"), TypeError, "begin must be a number, got str"),
        (lambda: RateSchedule("linear", end=HUGE), ValueError, "end must be a number that a float"),
        (lambda: RateSchedule("linear", end=2), ValueError, "rates must .* got begin=0.3, end=2"),
        (lambda: Entity(rate="0.5"), TypeError, "rate must be a number, got str"),
        (lambda: PackedBatchSampler([3], 8, rank=False), TypeError, "rank must be an integer"),
        (lambda: PackedBatchSampler([3], 8, seed="1"), TypeError, "seed must be an integer, got '"),
    ],
)
def test_schedules_strategies_and_samplers(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_errors_in_rows_name_the_column(tokenizer):
    for collator in (corruption(tokenizer), infilling(tokenizer), packed(tokenizer)):
        with pytest.raises(TypeError, match=r"row 0 of input_ids holds 1\.5 "):
            collator([{"input_ids": [1.5]}])
        with pytest.raises(TypeError, match="row 0 of attention_mask holds 'x' "):
            collator([{"input_ids": [5], "attention_mask": ["x"]}])
