"""The denoising collators: batches that models train on, rows that come back, and bad input."""

import copy
import itertools
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from maskft import DataCollatorForSpanCorruption, DataCollatorForTextInfilling, attach
from maskkernels import (
    Denoiser,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    corrupted_lengths,
    infill_text,
    ul2_denoisers,
)
from tests.support.small import CORPUS, build_wordpiece

KINDS = {"spans": DataCollatorForSpanCorruption, "text": DataCollatorForTextInfilling}
SENTINELS = 40


@pytest.fixture
def tokenizer():
    """The small tokenizer with what T5 and BART have besides."""
    made = build_wordpiece()
    made.add_special_tokens({"eos_token": "</s>"})
    made.add_tokens([f"<extra_id_{i}>" for i in reversed(range(SENTINELS))], special_tokens=True)
    return made


@pytest.fixture
def rows(tokenizer):
    """Ragged rows that end in the end of a sequence, some of two sentences."""
    texts = [*CORPUS, *(f"{a}. {b}." for a, b in itertools.pairwise(CORPUS))]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [{"input_ids": [*row, tokenizer.eos_token_id]} for row in ids]


def sentinel_ids(tokenizer):
    return [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(SENTINELS)]


def unpadded(batch):
    """[(inputs, labels)] without padding."""
    found = []
    for ids, real, labels in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        found.append((ids[real == 1].tolist(), labels[labels != -100].tolist()))
    return found


def restored(inputs, labels, tokenizer):
    names = sentinel_ids(tokenizer)
    assert labels[-1] == tokenizer.eos_token_id
    spans, last = {}, None
    for token in labels[:-1]:
        if token in names:
            spans[token], last = [], token
        else:
            spans[last].append(token)
    assert spans.pop(last) == []
    assert list(spans) == names[: len(spans)]
    return [t for token in inputs for t in (spans[token] if token in names else [token])]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("multiple", [None, 8])
def test_labels_put_back_into_the_inputs_give_the_rows(tokenizer, rows, side, multiple):
    tokenizer.padding_side = side
    batch = DataCollatorForSpanCorruption(tokenizer, pad_to_multiple_of=multiple)(rows)
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    assert all(column.dtype == torch.int64 for column in batch.values())
    for row, (inputs, labels) in zip(rows, unpadded(batch), strict=True):
        assert restored(inputs, labels, tokenizer) == row["input_ids"]
    padding = batch["attention_mask"] == 0
    assert (batch["input_ids"][padding] == tokenizer.pad_token_id).all()
    assert padding[:, 0 if side == "left" else -1].any()
    assert (batch["labels"][:, 0] != -100).all()  # labels begin at the left whatever the side
    if multiple:
        assert batch["input_ids"].shape[1] % 8 == batch["labels"].shape[1] % 8 == 0


def test_batches_are_those_of_the_op(tokenizer, rows):
    """The random words, the tokens and the numbers reach maskkernels as they should."""
    rows = [*rows, *({"input_ids": tokenizer(text)["input_ids"]} for text in CORPUS[:5])]
    lists = [row["input_ids"] for row in rows]
    assert lists[-1][0] == tokenizer.cls_token_id
    eos, mask = tokenizer.eos_token_id, tokenizer.mask_token_id
    edges = (tokenizer.cls_token_id, tokenizer.sep_token_id, eos)
    full_stop = tokenizer.convert_tokens_to_ids(".")
    ends = [tokenizer.convert_tokens_to_ids(mark) for mark in (".", "!")]
    assert full_stop in lists[-6]
    spans = DataCollatorForSpanCorruption(tokenizer, 0.3, 2.0, rng="sample", seed=5)
    text = DataCollatorForTextInfilling(tokenizer, 0.4, 2.0, rng="sample", seed=5)
    corruption = SpanCorruption(
        sentinel_ids(tokenizer), (Denoiser(0.3, 2.0),), eos_token_id=eos, edge_token_ids=edges
    )
    infilling = TextInfilling(mask, 0.4, 2.0, True, ends, edges)
    for collator in (spans, text):
        collator.set_epoch(3)
    for i, row in enumerate(lists):
        ids = torch.tensor([row])
        expected = corrupt_spans(ids, corruption, seed=5, epoch=3)
        assert unpadded(spans(rows))[i] == (
            expected.input_ids.tolist(), expected.target_ids.tolist(),
        )  # fmt: skip
        expected = infill_text(ids, infilling, seed=5, epoch=3)
        assert unpadded(text(rows))[i] == (expected.input_ids.tolist(), row)


def test_infilled_batches(tokenizer, rows):
    batch = DataCollatorForTextInfilling(tokenizer)(rows)
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    masks = (batch["input_ids"] == tokenizer.mask_token_id).sum(1)
    assert (masks > 0).all()
    for row, (inputs, labels) in zip(rows, unpadded(batch), strict=True):
        assert labels == row["input_ids"]
        assert inputs[-1] == tokenizer.eos_token_id
        assert set(inputs) <= {*row["input_ids"], tokenizer.mask_token_id}


def test_labels_share_no_memory_with_the_examples(tokenizer, rows):
    ids = np.array([rows[0]["input_ids"]] * 3)
    kept = ids.copy()
    batch = DataCollatorForTextInfilling(tokenizer)({"input_ids": ids})
    batch["labels"].zero_()
    assert (ids == kept).all()


def test_sentences_change_places_only_on_request(tokenizer, rows):
    two = rows[-1:] * 40
    kept = DataCollatorForTextInfilling(tokenizer, 0.01, permute_sentences=False)
    moved = DataCollatorForTextInfilling(tokenizer, 0.01)
    first = [
        {inputs[0] for inputs, _ in unpadded(collator(two))} - {tokenizer.mask_token_id}
        for collator in (kept, moved)
    ]
    assert len(first[0]) <= 2 < 40
    begins = two[0]["input_ids"]
    stop = begins.index(tokenizer.convert_tokens_to_ids("."))
    assert begins[stop + 1] in first[1]
    assert begins[stop + 1] not in first[0]


def test_ul2_puts_a_mode_token_in_front(tokenizer, rows):
    tokenizer.add_tokens(["[R]", "[S]", "[X]"], special_tokens=True)
    modes = tokenizer.convert_tokens_to_ids(["[R]", "[S]", "[X]"])
    collator = DataCollatorForSpanCorruption(tokenizer, denoisers=ul2_denoisers(*modes))
    seen = {}
    for _ in range(10):
        for row, (inputs, labels) in zip(rows, unpadded(collator(rows)), strict=True):
            seen.setdefault(inputs[0], []).append(sum(t in modes for t in inputs))
            assert restored(inputs[1:], labels, tokenizer) == row["input_ids"]
    assert set(seen) == set(modes)
    assert all(set(counts) == {1} for counts in seen.values())


# --- rows in any form --------------------------------------------------------------------------

FORMS = {
    "sequences": lambda rows: [row["input_ids"] for row in rows],
    "arrays": lambda rows: [{"input_ids": np.array(row["input_ids"])} for row in rows],
    "int32": lambda rows: [{"input_ids": np.array(row["input_ids"], np.int32)} for row in rows],
    "tensors": lambda rows: [torch.tensor(row["input_ids"]) for row in rows],
    "columns": lambda rows: {"input_ids": [row["input_ids"] for row in rows]},
    "arrow": pa.Table.from_pylist,
    "masks": lambda rows: [
        {**row, "attention_mask": [1] * len(row["input_ids"]), "extra": "text"} for row in rows
    ],
    "padded left": lambda rows: [
        {
            "input_ids": [0] * 5 + row["input_ids"],
            "attention_mask": [0] * 5 + [1] * len(row["input_ids"]),
        }
        for row in rows
    ],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_rows_gives_the_same_batch(tokenizer, rows, kind, form):
    collator = KINDS[kind](tokenizer, rng="sample", seed=1)
    expected, found = collator(rows), collator(FORMS[form](rows))
    assert list(expected) == list(found)
    for name in expected:
        assert torch.equal(expected[name], found[name])
    arrays = collator(FORMS[form](rows), return_tensors="np")
    for name in expected:
        assert np.array_equal(arrays[name], expected[name].numpy())


# --- random words ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_streams_are_fresh_and_seeded(tokenizer, rows, kind):
    free = KINDS[kind](tokenizer)
    torch.manual_seed(1)
    first, second = free(rows), free(rows)
    assert unpadded(first) != unpadded(second)
    torch.manual_seed(1)
    assert unpadded(free(rows)) == unpadded(first)
    seeded, again = (KINDS[kind](tokenizer, seed=4) for _ in range(2))
    for _ in range(3):
        assert unpadded(seeded(rows)) == unpadded(again(rows))
    assert unpadded(KINDS[kind](tokenizer, seed=5)(rows)) != unpadded(
        KINDS[kind](tokenizer, seed=4)(rows)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_samples_depend_on_seed_epoch_and_row_alone(tokenizer, rows, kind):
    collator = KINDS[kind](tokenizer, rng="sample", seed=4)
    whole = unpadded(collator(rows))
    assert [unpadded(collator([row]))[0] for row in rows] == whole
    assert unpadded(collator(rows[::-1])) == whole[::-1]
    collator.set_epoch(1)
    assert unpadded(collator(rows)) != whole
    fixed = collator.for_evaluation()
    expected = unpadded(fixed(rows))
    collator.set_epoch(2)
    assert unpadded(fixed(rows)) == expected
    assert fixed.rng == "sample"
    collator.set_epoch(0)
    for twin in (copy.deepcopy(collator), pickle.loads(pickle.dumps(collator))):
        assert unpadded(twin(rows)) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_id_column_names_the_rows(tokenizer, rows, kind):
    collator = KINDS[kind](tokenizer, rng="sample", sample_id_column="row")
    long = rows[-1]["input_ids"] * 4
    named = [{"input_ids": long, "row": i} for i in range(4)]
    found = unpadded(collator(named))
    assert found[0] != found[1]
    assert unpadded(collator(named[2:])) == found[2:]
    with pytest.raises(ValueError, match="example 0 has no column 'row'"):
        collator(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_make_no_difference(tokenizer, rows, kind, workers, method):
    collator = KINDS[kind](tokenizer, rng="sample", seed=4)
    collator.set_epoch(2)
    expected = [unpadded(collator(rows[i : i + 8])) for i in range(0, len(rows), 8)]
    loader = DataLoader(
        rows, 8, collate_fn=collator, num_workers=workers, multiprocessing_context=method
    )
    assert [unpadded(batch) for batch in loader] == expected


# --- models ------------------------------------------------------------------------------------


@pytest.fixture
def tiny_t5(tokenizer):
    set_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


@pytest.fixture
def tiny_bart(tokenizer):
    set_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_trains_on_the_batches(request, tokenizer, rows, kind, tmp_path):
    model = request.getfixturevalue({"spans": "tiny_t5", "text": "tiny_bart"}[kind])
    arguments = TrainingArguments(
        tmp_path, num_train_epochs=8, per_device_train_batch_size=8, learning_rate=3e-2,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    collator = KINDS[kind](tokenizer, rng="sample", seed=1)
    trainer = Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collator
    )
    attach(trainer)
    before = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == before
    trainer.train()
    assert int(collator._epoch) == 7
    assert trainer.evaluate()["eval_loss"] < 0.8 * before


def test_the_loss_is_over_the_targets_alone(tiny_t5, tokenizer, rows):
    """Padding adds nothing: the loss of a batch is the mean over the tokens of its rows."""
    tiny_t5.eval()
    collator = DataCollatorForSpanCorruption(tokenizer, rng="sample")
    with torch.no_grad():
        batch = collator(rows[:6])
        whole = tiny_t5(**batch).loss
        single = [collator([row]) for row in rows[:6]]
        weights = torch.tensor([float((one["labels"] != -100).sum()) for one in single])
        losses = torch.stack([tiny_t5(**one).loss for one in single])
    torch.testing.assert_close(whole, (losses * weights).sum() / weights.sum())


# --- bad input ---------------------------------------------------------------------------------


def test_a_tokenizer_without_sentinels():
    with pytest.raises(ValueError, match=r"no sentinels <extra_id_0>.*add_tokens.*sentinel_ids"):
        DataCollatorForSpanCorruption(build_wordpiece())
    assert DataCollatorForSpanCorruption(build_wordpiece(), sentinel_ids=[7, 8, 9])


def test_what_the_error_says_to_add_helps(rows):
    tokenizer = build_wordpiece()
    tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(100)], special_tokens=True)
    collator = DataCollatorForSpanCorruption(tokenizer)
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert list(collator.sentinel_ids) == list(range(first, first + 100))
    batch = collator([{"input_ids": list(range(10, 90))}])
    assert (batch["labels"][0, 0]) == first
    assert (batch["labels"][0, -1]) != -100


def test_a_tokenizer_without_mask_or_padding(tokenizer):
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match=r"no mask token.*add_special_tokens"):
        DataCollatorForTextInfilling(tokenizer)
    tokenizer.pad_token = None
    for kind in KINDS.values():
        with pytest.raises(ValueError, match=r"no padding token.*add_special_tokens"):
            kind(tokenizer)


def test_a_tokenizer_without_full_stops():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, "a": 3}
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"give sentence_end_ids, or permute_sentences=False"):
        DataCollatorForTextInfilling(bare)
    assert DataCollatorForTextInfilling(bare, permute_sentences=False)([[3, 3, 3]])
    assert DataCollatorForTextInfilling(bare, sentence_end_ids=[1])([[3, 1, 3]])


def test_more_spans_than_sentinels(tokenizer):
    collator = DataCollatorForSpanCorruption(tokenizer, sentinel_ids=[7, 8, 9])
    with pytest.raises(ValueError, match="row 1 needs 6 sentinels for its 100 tokens and there"):
        collator([[20] * 10, [20] * 100])


def test_short_rows_are_collated(tokenizer):
    first, second = sentinel_ids(tokenizer)[:2]
    eos = tokenizer.eos_token_id
    found = unpadded(DataCollatorForSpanCorruption(tokenizer)([[], [eos], [20], [20, 21, eos]]))
    assert found == [
        ([], [first, eos]),
        ([eos], [first, eos]),
        ([20], [first, eos]),
        ([20, first, eos], [first, 21, second, eos]),
    ]
    found = unpadded(DataCollatorForTextInfilling(tokenizer)([[], [eos], [20], [20, 21, eos]]))
    assert [labels for _, labels in found] == [[], [eos], [20], [20, 21, eos]]
    assert [inputs for inputs, _ in found[:2]] == [[], [eos]]


def test_lengths_are_known_beforehand(tokenizer):
    block = [20] * 568 + [tokenizer.eos_token_id]
    batch = DataCollatorForSpanCorruption(tokenizer)([block] * 3)
    assert (batch["input_ids"].shape[1], batch["labels"].shape[1]) == corrupted_lengths(569)
    assert batch["attention_mask"].all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rng": "hf"}, ValueError, r"rng must be one of \('stream', 'sample'\), got 'hf'"),
        ({"max_length": 0}, ValueError, "max_length must be positive, got 0"),
        ({"mean_span_length": -1}, ValueError, "mean_span_length must be in"),
        ({"seed": -1, "rng": "sample"}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
        ({"seed": 0.5}, TypeError, "float"),
    ],
)
def test_options_that_do_not_fit(tokenizer, kind, options, error, text):
    with pytest.raises(error, match=text):
        KINDS[kind](tokenizer, **options)


@pytest.mark.parametrize("density", [0.0, 1.0, -0.5, 2, float("nan")])
def test_densities_outside_0_and_1(tokenizer, density):
    with pytest.raises(ValueError, match=r"noise_density must be in \(0, 1\)"):
        DataCollatorForSpanCorruption(tokenizer, density)
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\)"):
        DataCollatorForTextInfilling(tokenizer, density)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("examples", "error", "text"),
    [
        ([], ValueError, "the batch is empty"),
        ([[1, 2], {"input_ids": [1]}], TypeError, "all mappings or all sequences"),
        (["text"], TypeError, "example 0 must be a mapping or a sequence of ids, got str"),
        ([{"ids": [1]}], ValueError, "example 0 has no column 'input_ids'"),
        ([{"input_ids": [1.5, 2]}], TypeError, "holds 1.5"),
        ({"ids": [[1]]}, ValueError, "no column 'input_ids'"),
        ({"input_ids": []}, ValueError, "the batch is empty"),
        ([[1] * 65], ValueError, "example 0 has 65 tokens, more than max_length=64"),
        ([{"input_ids": [1, 2], "attention_mask": [1]}], ValueError, "example 0 has 2 input_ids"),
    ],
)
def test_examples_that_do_not_fit(tokenizer, kind, examples, error, text):
    collator = KINDS[kind](tokenizer, max_length=64)
    with pytest.raises(error, match=text):
        collator(examples)


def test_epochs_that_are_none(tokenizer):
    with pytest.raises(ValueError, match="epoch must not be negative"):
        DataCollatorForSpanCorruption(tokenizer).set_epoch(-1)
