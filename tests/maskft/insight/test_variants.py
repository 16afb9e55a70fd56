"""Masked marginals against a plain computation, a variant at a time."""

import pytest
import torch

from maskft import score_variants
from tests.support.insight import RESIDUES, protein_model
from tests.support.small import build_bert, build_wordpiece

SEQUENCE = "MKTAYIAKQR"


@torch.no_grad()
def marginal(model, tokenizer, sequence, substitutions, window=None):
    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in sequence]
    hidden = list(ids)
    for place, _ in substitutions:
        hidden[place] = tokenizer.mask_token_id
    begin, end = window or (0, len(ids))
    row = torch.tensor([[tokenizer.cls_token_id, *hidden[begin:end], tokenizer.eos_token_id]])
    logprobs = model(row).logits[0].log_softmax(-1)
    return sum(
        float(
            logprobs[place - begin + 1, tokenizer.convert_tokens_to_ids(new)]
            - logprobs[place - begin + 1, ids[place]]
        )
        for place, new in substitutions
    )


def test_single_and_joined_substitutions():
    model, tokenizer = protein_model()
    found = score_variants(model, tokenizer, SEQUENCE, ["K2R", "A4G", "A4G:K2R", "A4C", "A4A"])
    expected = [[(1, "R")], [(3, "G")], [(1, "R"), (3, "G")], [(3, "C")], [(3, "A")]]
    for one, substitutions in zip(found, expected, strict=True):
        assert one.score == pytest.approx(
            marginal(model, tokenizer, SEQUENCE, substitutions), abs=1e-5
        )
    assert found[-1].score == 0


def test_every_substitution_of_a_place_shares_a_row():
    model, tokenizer = protein_model()
    rows = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: rows.append(len(args[0]))
    )
    variants = [f"{old}{n}{new}" for n, old in enumerate(SEQUENCE, 1) for new in RESIDUES]
    assert len(score_variants(model, tokenizer, SEQUENCE, variants)) == 200
    assert sum(rows) == len(SEQUENCE)


def test_long_sequences_are_read_around_the_place():
    model, tokenizer = protein_model()
    sequence = SEQUENCE * 4
    found = score_variants(model, tokenizer, sequence, ["A24C", "M1K"], max_length=12)
    middle = marginal(model, tokenizer, sequence, [(23, "C")], (18, 28))
    assert found[0].score == pytest.approx(middle, abs=1e-5)
    begin = marginal(model, tokenizer, sequence, [(0, "K")], (0, 10))
    assert found[1].score == pytest.approx(begin, abs=1e-5)


def test_positions_count_from_where_the_sequence_begins():
    model, tokenizer = protein_model()
    a = score_variants(model, tokenizer, SEQUENCE, ["K2R"])
    b = score_variants(model, tokenizer, SEQUENCE, ["K102R"], first_position=101)
    assert a[0].score == b[0].score


@pytest.mark.parametrize(
    ("variant", "text"),
    [
        ("A2G", r"variants\[1\]: A2G does not match the sequence, which has K at position 2"),
        ("K99G", "outside of the sequence, which has positions 1 to 10"),
        ("K0G", "outside of the sequence"),
        ("24", "must be substitutions such as A24G"),
        ("", "must be substitutions such as A24G"),
        ("K2R:K2G", "names position 2 twice"),
        ("K2X", "has no token for 'X'"),
    ],
)
def test_variants_that_do_not_fit_are_refused(variant, text):
    model, tokenizer = protein_model()
    with pytest.raises(ValueError, match=text):
        score_variants(model, tokenizer, SEQUENCE, ["K2R", variant])


@pytest.mark.parametrize("sequence", ["", "MK TA", "MKß"])
def test_a_sequence_is_letters(sequence):
    model, tokenizer = protein_model()
    with pytest.raises(ValueError, match="letters without spaces"):
        score_variants(model, tokenizer, sequence, [])


def test_a_model_of_words_is_refused():
    tokenizer = build_wordpiece()
    with pytest.raises(ValueError, match="a token of each letter"):
        score_variants(build_bert(tokenizer), tokenizer, "MKXYZ~", ["M1K"])
