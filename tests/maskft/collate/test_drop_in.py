"""What Transformers tests of its own collator, told again for ours.

Its tests use a vocabulary of five special tokens and ids far past it, as models with resized
embeddings have them.
"""

import copy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, set_seed

from maskft import DataCollatorForLanguageModeling

TOKENS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
FRAMEWORKS = ("pt", "np")
each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)
each_rng = pytest.mark.parametrize("rng", ["stream", "sample", "hf"])
each_form = pytest.mark.parametrize(
    "form", [list, np.array, torch.tensor], ids=["list", "numpy", "torch"]
)
pytestmark = pytest.mark.filterwarnings("ignore:input_ids hold", "ignore:Random token replacement")


@pytest.fixture
def tokenizer():
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(TOKENS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", mask_token="[MASK]",
    )  # fmt: skip


def make(tokenizer, framework="pt", **options):
    return DataCollatorForLanguageModeling(tokenizer, return_tensors=framework, **options)


def rows_of(lengths, mapping=True):
    rows = [list(range(length)) for length in lengths]
    return [{"input_ids": row} for row in rows] if mapping else rows


def as_arrays(batch):
    return np.asarray(batch["input_ids"]), np.asarray(batch["labels"])


@each_framework
@each_rng
@pytest.mark.parametrize("mapping", [True, False])
@pytest.mark.parametrize("lengths", [(10, 10), (5, 10)])
@pytest.mark.parametrize(("multiple", "width"), [(None, 10), (8, 16)])
def test_masked_batches(tokenizer, framework, rng, mapping, lengths, multiple, width):
    set_seed(42)
    rows = rows_of(lengths, mapping)
    collator = make(
        tokenizer, framework, rng=rng, pad_to_multiple_of=multiple, mlm_probability=0.5, seed=1
    )
    ids, labels = as_arrays(collator(rows))
    assert ids.shape == labels.shape == (2, width)
    original = np.full((2, width), tokenizer.pad_token_id)
    for b, length in enumerate(lengths):
        original[b, :length] = range(length)
    predicted = labels != -100
    assert predicted.any()
    assert not predicted[original < len(TOKENS)].any()  # special tokens and padding
    assert (labels[predicted] == original[predicted]).all()
    assert (ids[~predicted] == original[~predicted]).all()
    assert (ids[predicted] == tokenizer.mask_token_id).any()


@each_framework
@pytest.mark.parametrize("mapping", [True, False])
@pytest.mark.parametrize(("multiple", "width"), [(None, 10), (8, 16)])
def test_causal_batches(tokenizer, framework, mapping, multiple, width):
    for lengths in ((10, 10), (5, 10)):
        collator = make(tokenizer, framework, mlm=False, pad_to_multiple_of=multiple)
        ids, labels = as_arrays(collator(rows_of(lengths, mapping)))
        assert ids.shape == labels.shape == (2, width)
        assert (labels[ids == tokenizer.pad_token_id] == -100).all()
        assert (labels == ids)[ids != tokenizer.pad_token_id].all()


@each_framework
@pytest.mark.parametrize("mapping", [True, False])
def test_ragged_rows_need_a_pad_token(tokenizer, framework, mapping):
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad"):
        make(tokenizer, framework, mlm=False)(rows_of((5, 10), mapping))


@each_framework
@each_form
@pytest.mark.parametrize("strategy", ["random", "whole_word"])
def test_rows_may_be_lists_arrays_or_tensors(tokenizer, framework, form, strategy):
    rows = [{"input_ids": form(list(range(10)))} for _ in range(2)]
    ids, labels = as_arrays(make(tokenizer, framework, strategy=strategy)(rows))
    assert ids.shape == labels.shape == (2, 10)


@each_framework
@each_form
@pytest.mark.parametrize("name", ["next_sentence_label", "sentence_order_label"])
@pytest.mark.parametrize(("multiple", "width"), [(None, 5), (8, 8)])
def test_other_columns_come_along(tokenizer, framework, form, name, multiple, width):
    rows = [
        {"input_ids": form([0, 1, 2, 3, 4]), "token_type_ids": form([0, 1, 2, 3, 4]), name: i}
        for i in range(2)
    ]
    batch = make(tokenizer, framework, pad_to_multiple_of=multiple)(rows)
    for column in ("input_ids", "token_type_ids", "labels"):
        assert tuple(batch[column].shape) == (2, width)
    assert batch[name].tolist() == [0, 1]


@each_framework
@pytest.mark.parametrize(
    "form", [list, tuple, np.array, torch.tensor], ids=["list", "tuple", "numpy", "torch"]
)
@pytest.mark.parametrize("mlm", [True, False])
@pytest.mark.parametrize("multiple", [None, 8])
def test_examples_stay_as_they_are(tokenizer, framework, form, mlm, multiple):
    for lengths in ((10, 10), (5, 10)):
        rows = [
            {"input_ids": form(list(range(n))), "next_sentence_label": i}
            for i, n in enumerate(lengths)
        ]
        before = copy.deepcopy(rows)
        make(tokenizer, framework, mlm=mlm, pad_to_multiple_of=multiple)(rows)
        for row, kept in zip(rows, before, strict=True):
            assert row.keys() == kept.keys()
            assert type(row["input_ids"]) is type(kept["input_ids"])
            assert list(row["input_ids"]) == list(kept["input_ids"])


@each_framework
@each_rng
@pytest.mark.parametrize("strategy", ["random", "whole_word"])
def test_a_seed_repeats_and_another_one_does_not(tokenizer, framework, rng, strategy):
    gaps = [(2 * i, 2 * i + 1) for i in range(1000)]  # every token is a word
    rows = [{"input_ids": list(range(1000)), "offset_mapping": gaps} for _ in range(2)]
    found = []
    for seed in (42, 42, 43):
        set_seed(seed + len(found))  # not the source of a seeded collator
        collator = make(tokenizer, framework, strategy=strategy, rng=rng, seed=seed)
        found.append(as_arrays(collator(rows)))
    (ids, labels), (same_ids, same_labels), (other_ids, other_labels) = found
    assert (ids == same_ids).all()
    assert (labels == same_labels).all()
    assert (ids != other_ids).any()
    assert (labels != other_labels).any()


@each_rng
def test_seeded_workers_repeat_and_differ(tokenizer, rng):
    """As many batches as workers, each with the same rows."""
    rows = rows_of([1000] * 4)
    runs = []
    for seed in (42, 42, 43):
        collator = make(tokenizer, rng=rng, seed=seed)
        loader = DataLoader(rows, 2, collate_fn=collator, num_workers=2)
        runs.append([batch["input_ids"] for batch in loader])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    if rng != "sample":  # where equal rows have equal masks
        assert not torch.equal(*runs[0])


@each_framework
@each_rng
def test_every_selected_token_becomes_the_mask_where_its_share_is_1(tokenizer, framework, rng):
    collator = make(tokenizer, framework, rng=rng, mask_replace_prob=1, random_replace_prob=0)
    ids, labels = as_arrays(collator(rows_of([1000, 1000])))
    predicted = labels != -100
    assert predicted.any()
    assert (ids[predicted] == tokenizer.mask_token_id).all()


@each_framework
@each_rng
def test_no_selected_token_becomes_the_mask_where_its_share_is_0(tokenizer, framework, rng):
    collator = make(tokenizer, framework, rng=rng, mask_replace_prob=0, random_replace_prob=0)
    ids, labels = as_arrays(collator(rows_of([1000, 1000])))
    assert (labels != -100).any()
    assert (ids == np.arange(1000)).all()


@each_framework
@each_rng
def test_whole_words_of_the_rows_are_masked_whole(tokenizer, framework, rng):
    """Words of two pieces between two special tokens, and a row that is padded.

    rng="hf" reads them from offsets, as Transformers does; else marks in the vocabulary would win
    over those, and word_ids over both.
    """
    begins = [5 * (i // 2) + 2 * (i % 2) for i in range(40)]
    pieces = [(0, 0), *((begin, begin + 2) for begin in begins)]
    rows = []
    for length in (42, 22):
        inner = length - 2
        rows.append({
            "input_ids": [1, *range(10, 10 + inner), 2],
            "special_tokens_mask": [1, *[0] * inner, 1],
            **({"offset_mapping": [*pieces[: inner + 1], (0, 0)]} if rng == "hf" else
               {"word_ids": [None, *(i // 2 for i in range(inner)), None]}),
        })  # fmt: skip
    collator = make(
        tokenizer, framework, rng=rng, strategy="whole_word", mlm_probability=0.5, seed=3
    )
    _, labels = as_arrays(collator(rows))
    predicted = labels != -100
    assert not predicted[:, 0].any()
    for b, inner in enumerate((40, 20)):
        words = predicted[b, 1 : 1 + inner].reshape(-1, 2)
        assert (words[:, 0] == words[:, 1]).all()
        assert 0 < words[:, 0].sum() < len(words)
        assert not predicted[b, 1 + inner :].any()


@pytest.mark.parametrize(
    "options",
    [
        {"mlm_probability": -0.1},
        {"mlm_probability": 1.1},
        {"mask_replace_prob": 1.1},
        {"random_replace_prob": -0.1},
        {"mask_replace_prob": 0.8, "random_replace_prob": 0.3},
        {"mlm": False, "whole_word_mask": True},
    ],
    ids=str,
)
def test_bad_probabilities_are_refused(tokenizer, options):
    with pytest.raises(ValueError, match=r"should|Whole word"):
        make(tokenizer, **options)
