"""Which tokens may be masked, and with what: unknown ids, special tokens, labels of the rows."""

import os
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from maskft import (
    DataCollatorForLanguageModeling,
    DataCollatorForSpanCorruption,
    DataCollatorForTextInfilling,
    DataCollatorWithPacking,
    UnmaskedCollator,
    mask_batch,
)
from maskft.strategy.vocabulary import LARGEST
from tests.support.small import CORPUS, SPECIAL, build_wordpiece


@pytest.fixture
def tokenizer():
    return build_wordpiece()


def make(tokenizer, **options):
    return DataCollatorForLanguageModeling(
        tokenizer, **{"rng": "sample", "mlm_probability": 1.0, **options}
    )


# --- ids that the tokenizer does not know ------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "whole_word", "span"])
@pytest.mark.parametrize("framework", ["pt", "np"])
def test_ids_past_the_tokenizer_are_ordinary_tokens(tokenizer, strategy, framework):
    known = len(tokenizer)
    collator = make(tokenizer, strategy=strategy, return_tensors=framework)
    ids = [2, known, 40, known + 700, 3]
    with pytest.warns(
        UserWarning, match=rf"input_ids hold {known + 700}, and .* knows {known} ids"
    ):
        batch = collator([ids])
    assert batch["labels"].tolist() == [[-100, known, 40, known + 700, -100]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator([[known + 900]])  # once


def test_each_id_past_the_tokenizer_is_a_word(tokenizer):
    known = len(tokenizer)
    row = [known + i for i in range(64)]
    with pytest.warns(UserWarning, match="input_ids hold"):
        labels = make(tokenizer, strategy="whole_word", mlm_probability=0.5)([row])["labels"]
    assert 0 < (labels == -100).sum() < 64


def test_unknown_ids_change_no_other_mask(tokenizer):
    row = {**tokenizer(CORPUS[0]), "row": 7}
    changed = {**row, "input_ids": [2, len(tokenizer) + 9, *row["input_ids"][2:]]}
    options = {"sample_id_column": "row", "mlm_probability": 0.4, "seed": 1}
    expected = make(tokenizer, **options)([row])
    with pytest.warns(UserWarning, match="input_ids hold"):
        found = make(tokenizer, **options)([changed])
    assert torch.equal(found["labels"] != -100, expected["labels"] != -100)
    assert torch.equal(found["input_ids"][:, 2:], expected["input_ids"][:, 2:])


def test_unknown_ids_are_masked_packed_and_on_a_device(tokenizer):
    known = len(tokenizer)
    rows = [[2, known + 3, 3], [2, 40, known, 41, 3]]
    expected = [known + 3, 40, known, 41]
    packing = DataCollatorWithPacking(
        tokenizer, attention="block_diagonal", rng="sample", mlm_probability=1.0
    )
    with pytest.warns(UserWarning, match="input_ids hold"):
        labels = packing(rows)["labels"]
    assert labels[labels != -100].tolist() == expected
    collator = make(tokenizer)
    batch = UnmaskedCollator(collator)(rows)
    assert batch["masking"]["highest_id"] == known + 3  # a GPU must not look for it
    with pytest.warns(UserWarning, match="input_ids hold"):
        labels = mask_batch(batch, collator)["labels"]
    assert labels[labels != -100].tolist() == expected
    assert "highest_id" not in UnmaskedCollator(collator)([[2, 40, 3]])["masking"]


@pytest.mark.parametrize("strategy", ["random", "whole_word"])
@pytest.mark.parametrize("bad", [-1, -(1 << 62)])
def test_negative_ids_are_an_error(tokenizer, strategy, bad):
    with pytest.raises(ValueError, match=rf"input_ids\[0, 1\] is {bad}, outside the vocabulary"):
        make(tokenizer, strategy=strategy)([[2, bad, 3]])


def test_absurd_ids_are_an_error_and_no_large_table(tokenizer):
    with pytest.raises(ValueError, match=f"input_ids hold {LARGEST}, and the tokenizer knows"):
        make(tokenizer)([[2, LARGEST, 3]])
    padded = {"input_ids": [2, 40, 1 << 60], "attention_mask": [1, 1, 0]}
    assert make(tokenizer)([padded])["labels"].tolist() == [[-100, 40, -100]]


def print_warnings(_):
    """In a worker, where nobody records them."""
    warnings.showwarning = lambda message, *_, **__: os.write(2, f"{message}\n".encode())


def test_workers_warn_of_unknown_ids_once(tokenizer, capfd):
    rows = [[2, len(tokenizer) + i, 3] for i in range(8)]
    loader = DataLoader(
        rows, 1, collate_fn=make(tokenizer), num_workers=1, worker_init_fn=print_warnings
    )
    for _ in range(2):
        assert len(list(loader)) == 8
    assert capfd.readouterr().err.count("input_ids hold") == 1


def test_a_mask_token_with_an_id_past_the_others_is_used():
    """A vocabulary with holes: fewer tokens than its highest id."""
    tokenizer = build_wordpiece()
    backend = tokenizer.backend_tokenizer
    vocabulary = {**tokenizer.get_vocab(), "[MASK]": 500}
    from tokenizers import models

    backend.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    made = type(tokenizer)(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    assert made.mask_token_id >= len(made)
    batch = make(made, seed=1)([[40] * 500])
    found = batch["input_ids"].unique()
    assert made.mask_token_id in found
    others = found[found != made.mask_token_id]
    assert len(others) > 10
    assert others.max() < len(made)


# --- special tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("strategy", ["random", "whole_word"])
def test_a_special_tokens_mask_adds_to_the_tokenizers_special_tokens(tokenizer, packed, strategy):
    tokenizer.add_special_tokens({"additional_special_tokens": ["[A]"]})
    row = tokenizer("the [A] fox", return_special_tokens_mask=True)
    marked = row["input_ids"].index(tokenizer.convert_tokens_to_ids("[A]"))
    assert not row["special_tokens_mask"][marked]  # a fast tokenizer marks those it adds alone
    row["special_tokens_mask"][marked + 1] = 1
    options = {"rng": "sample", "mlm_probability": 1.0, "strategy": strategy}
    collator = (
        DataCollatorWithPacking(tokenizer, attention="block_diagonal", **options)
        if packed
        else DataCollatorForLanguageModeling(tokenizer, **options)
    )
    labels = collator([row])["labels"][0].tolist()
    free = {1}  # "the"; [CLS], [A] and [SEP] are special, "fox" is marked by the column
    free |= set(range(marked + 2, len(labels) - 1))
    assert {i for i, label in enumerate(labels) if label != -100} == free


def test_additional_special_tokens_around_a_row_are_never_noise(tokenizer):
    tokenizer.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": ["[EN]"]})
    tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(100)], special_tokens=True)
    language = tokenizer.convert_tokens_to_ids("[EN]")
    words = tokenizer(CORPUS[0], add_special_tokens=False)["input_ids"]
    rows = [{"input_ids": [language, *words, tokenizer.eos_token_id, language]}] * 40
    spans = DataCollatorForSpanCorruption(tokenizer, noise_density=0.5, seed=1)
    text = DataCollatorForTextInfilling(tokenizer, mask_ratio=0.5, permute_sentences=False, seed=1)
    for batch in (spans(rows), text(rows)):
        for ids, real in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
            kept = ids[real].tolist()
            assert (kept[0], kept[-1]) == (language, language)
    assert language not in spans(rows)["labels"]


# --- random replacements -----------------------------------------------------------------------


def drawn(collator):
    """The ids of random replacements: every token is replaced by a random one."""
    return set(collator([[40] * 2000])["input_ids"][0].tolist())


def test_replacements_may_leave_out_special_tokens(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["[A]"]})
    random = {"mask_replace_prob": 0.0, "random_replace_prob": 1.0}
    special = set(tokenizer.all_special_ids)
    assert len(special) == len(SPECIAL) + 1
    every = set(range(len(tokenizer)))
    assert drawn(make(tokenizer, **random)) == every
    assert drawn(make(tokenizer, **random, replacement_ids="ordinary")) == every - special
    assert drawn(make(tokenizer, **random, replacement_ids=[50, 60, 0])) == {50, 60, 0}
    given = np.array([50, 60])
    assert drawn(make(tokenizer, **random, replacement_ids=given)) == {50, 60}


def test_replacement_ids_change_no_other_choice(tokenizer):
    row = tokenizer(" ".join(CORPUS[:4]))
    a, b = (
        make(tokenizer, mlm_probability=0.5, replacement_ids=given)([row])
        for given in (None, "ordinary")
    )
    assert torch.equal(a["labels"], b["labels"])
    mask = tokenizer.mask_token_id
    assert torch.equal(a["input_ids"] == mask, b["input_ids"] == mask)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("all", "must be 'ordinary' .* got 'all'"),
        (3, "must be 'ordinary' .* got 3"),
        ([], "must hold at least one id, got none"),
        ([5, -1], r"must be ids in \[0, \d+\), got -1"),
        ([10**6], r"must be ids in \[0, \d+\), got 1000000"),
        ([1.5], r"must be ids in \[0, \d+\), got 1.5"),
        ([True], r"must be ids in \[0, \d+\), got True"),
    ],
)
def test_bad_replacement_ids_are_refused(tokenizer, given, text):
    with pytest.raises(ValueError, match=f"replacement_ids {text}"):
        make(tokenizer, replacement_ids=given)
    with pytest.raises(ValueError, match="rng='hf' draws what"):
        DataCollatorForLanguageModeling(tokenizer, rng="hf", replacement_ids="ordinary")


# --- labels of the rows ------------------------------------------------------------------------


@pytest.mark.parametrize("mlm", [True, False])
def test_labels_that_the_rows_bring_are_left_out_with_a_warning(tokenizer, mlm):
    rows = [{"input_ids": [2, 40, 3]}, {"input_ids": [2, 40, 41, 42, 3]}]
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", mlm=mlm)
    expected = collator(rows)["labels"]
    brought = [{**row, "labels": [1] * len(row["input_ids"])} for row in rows]
    with pytest.warns(UserWarning, match="'labels', which is left out.*ForTokenClassification"):
        assert torch.equal(collator(brought)["labels"], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator(brought)  # once


def test_rows_with_labels_are_masked_on_the_device_too(tokenizer):
    collator = make(tokenizer)
    rows = [{"input_ids": [2, 40, 3], "labels": [1, 1, 1]}]
    with pytest.warns(UserWarning, match="'labels'"):
        batch = UnmaskedCollator(collator)(rows)
    assert mask_batch(batch, collator)["labels"].tolist() == [[-100, 40, -100]]
