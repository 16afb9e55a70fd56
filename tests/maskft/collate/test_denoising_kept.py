"""Special tokens inside rows, and tokens that a column marks, are never corrupted."""

import pytest
import torch

from maskft import DataCollatorForSpanCorruption, DataCollatorForTextInfilling
from maskft.collate import denoising
from tests.support.small import CORPUS, build_wordpiece

SEED = {"rng": "sample", "seed": 1}


@pytest.fixture
def tokenizer():
    tokenizer = build_wordpiece()
    tokenizer.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": ["[EN]"]})
    tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(100)], special_tokens=True)
    return tokenizer


def ids_of(tokenizer, *tokens):
    return tokenizer.convert_tokens_to_ids(list(tokens))


def collators(tokenizer, **options):
    options = {**SEED, **options}
    return (
        DataCollatorForSpanCorruption(tokenizer, noise_density=0.5, **options),
        DataCollatorForTextInfilling(tokenizer, mask_ratio=0.5, permute_sentences=False, **options),
        DataCollatorForTextInfilling(tokenizer, mask_ratio=0.5, sentence_end_ids=[40], **options),
    )


def rows_of(tokenizer, with_marks=True):
    """Rows with [EN] and [SEP] in all places; and tokens that only the column marks."""
    language, between = ids_of(tokenizer, "[EN]", "[SEP]")
    rows = []
    for i, text in enumerate(CORPUS * 4):
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
        at = i % len(words)
        row = [*[language] * (i % 2), *words[:at], between, between, *words[at:], language]
        marks = [0] * len(row)
        if with_marks:
            marks[-2] = marks[(3 * i) % len(row)] = 1
        rows.append({"input_ids": row, "special_tokens_mask": marks})
    return rows


def kept_of(tokenizer, row):
    special = set(tokenizer.all_special_ids)
    return [
        i in special or bool(mark)
        for i, mark in zip(row["input_ids"], row["special_tokens_mask"], strict=True)
    ]


def real(batch):
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
        yield ids[mask].tolist()


def test_spans_are_taken_from_between_the_tokens_that_stay(tokenizer):
    """Sentinels put back give the row without them, and all that stays is in its order."""
    rows = rows_of(tokenizer)
    sentinels = set(ids_of(tokenizer, *(f"<extra_id_{i}>" for i in range(100))))
    batch = collators(tokenizer)[0](rows)
    inside = 0
    for row, seen, labels in zip(rows, real(batch), batch["labels"].tolist(), strict=True):
        kept = kept_of(tokenizer, row)
        spans, sentinel = {}, None
        for label in labels:
            if label in sentinels:
                sentinel = label
                spans[sentinel] = []
            elif label not in (-100, tokenizer.eos_token_id):
                spans[sentinel].append(label)
        stays = [i for i, keep in zip(row["input_ids"], kept, strict=True) if keep]
        others = [i for i, keep in zip(row["input_ids"], kept, strict=True) if not keep]
        restored = [i for token in seen for i in spans.get(token, [token])]
        assert sorted(restored) == sorted(row["input_ids"])
        assert is_within(stays, seen)
        assert is_within(others, restored)
        # What stays is behind what it follows: at most the rest of one span is moved.
        inside += restored != row["input_ids"]
        for place, keep in enumerate(kept):
            if keep and all(kept[place:]):
                assert seen[place - len(kept) :] == row["input_ids"][place:]
                break
    assert 0 < inside < len(rows)


def is_within(part, whole):
    """Whether ``part`` is a subsequence of ``whole``."""
    rest = iter(whole)
    return all(token in rest for token in part)


@pytest.mark.parametrize("permuted", [False, True])
def test_infilling_leaves_what_stays(tokenizer, permuted):
    rows = rows_of(tokenizer)
    batch = collators(tokenizer)[1 + permuted](rows)
    mask = tokenizer.mask_token_id
    for row, seen, labels in zip(rows, real(batch), batch["labels"].tolist(), strict=True):
        assert [label for label in labels if label != -100] == row["input_ids"]
        kept = kept_of(tokenizer, row)
        stays = [i for i, keep in zip(row["input_ids"], kept, strict=True) if keep]
        left = [token for token in seen if token != mask]
        if permuted:
            for token in set(stays):
                assert left.count(token) >= stays.count(token)
        else:
            assert is_within(stays, left)
            assert is_within(left, row["input_ids"])
        assert len(left) < len(row["input_ids"])
        assert seen[-1] == row["input_ids"][-1]  # [EN], at the end


def test_the_choices_are_those_of_the_rows_without_what_stays(tokenizer):
    between = ids_of(tokenizer, "[SEP]")[0]
    words = tokenizer(CORPUS[0], add_special_tokens=False)["input_ids"]
    row = [*words[:3], between, *words[3:]]
    for collator in collators(tokenizer, sample_id_column="id"):
        found = collator([{"input_ids": row, "id": 7}])["input_ids"][0].tolist()
        expected = collator([{"input_ids": words, "id": 7}])["input_ids"][0].tolist()
        assert [token for token in found if token != between] == expected


def all_of(edges):
    return lambda ids, *_: torch.isin(ids, torch.tensor(edges))


def test_special_tokens_at_the_ends_alone_take_the_same_way_to_the_same_rows(
    tokenizer, monkeypatch
):
    language = ids_of(tokenizer, "[EN]")[0]
    rows = [[language, *tokenizer(text)["input_ids"], language] for text in CORPUS]
    examples = [{"input_ids": row, "attention_mask": [1] * (len(row) - 1) + [0]} for row in rows]
    edges = collators(tokenizer)[1]._options.edge_token_ids
    for collator in collators(tokenizer):
        expected = collator(examples)
        with monkeypatch.context() as patched:
            patched.setattr(denoising, "kept_inside", all_of(edges))
            found = collator(examples)
        for name, column in expected.items():
            assert torch.equal(found[name], column), name


def test_mode_tokens_stay_in_front(tokenizer):
    from maskkernels import Denoiser

    language, mode = ids_of(tokenizer, "[EN]", "[UNK]")
    collator = DataCollatorForSpanCorruption(
        tokenizer, denoisers=[Denoiser(0.5, mode_token_id=mode)], **SEED
    )
    row = [language, 40, 41, language, 42, 43, 44]
    (seen,) = real(collator([row]))
    assert seen[:2] == [mode, language]
    assert seen.count(language) == 2


def test_rows_of_nothing_else(tokenizer):
    language = ids_of(tokenizer, "[EN]")[0]
    rows = [[language] * 3, [language, 40, language, 41], []]
    for collator in collators(tokenizer):
        seen = list(real(collator(rows)))
        assert seen[0] == rows[0]
        assert seen[1].count(language) == 2
        assert not seen[2]


def test_a_mask_of_another_length_is_refused(tokenizer):
    for collator in collators(tokenizer):
        with pytest.raises(ValueError, match=r"has 2 input_ids but 1 .* 'special_tokens_mask'"):
            collator([{"input_ids": [40, 41], "special_tokens_mask": [1]}])
