"""Static shapes: batches of varied content never compile anew."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import RecompileError

from maskft import DataCollatorWithPacking, PackedBatchSampler

EXAMPLE = Path(__file__).parents[2] / "examples" / "static_shapes.py"


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def test_the_example_compiles_once_and_learns(capsys):
    spec = importlib.util.spec_from_file_location("static_shapes", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    losses = example.main(["--backend", "aot_eager", "--rows", "120", "--epochs", "3"])
    assert "compiled once" in capsys.readouterr().out
    assert len(losses) > 50
    assert sum(losses[-5:]) < sum(losses[:5])
    rows = example.make_rows(300)
    sampler = PackedBatchSampler([len(row) for row in rows], example.BLOCK)
    maskable = torch.arange(example.VOCABULARY) >= 4
    for epoch in range(3):
        for batch in sampler:
            masked, _ = example.masked_block([rows[i] for i in batch], maskable, epoch)
            assert int(masked.count) <= example.CAPACITY  # nothing predicted is dropped
            kept = masked.positions[masked.positions >= 0]
            assert torch.equal(kept, (masked.labels != -100).nonzero().squeeze(1))


@pytest.mark.parametrize("total_length", [64, None])
def test_packed_batches_of_a_total_length_compile_once(tokenizer, rows, tiny_bert, total_length):
    """And without one the check raises, so it can fail."""
    sampler = PackedBatchSampler([len(row["input_ids"]) for row in rows], 64, seed=1)
    packing = DataCollatorWithPacking.for_model(
        tiny_bert, tokenizer, rng="sample", total_length=total_length
    )
    tiny_bert.eval()
    compiled = torch.compile(tiny_bert, backend="eager", dynamic=False)

    def run():
        for batch in sampler:
            packed = packing([rows[i] for i in batch])
            expected = tiny_bert(**packed).loss
            assert torch.allclose(compiled(**packed).loss, expected)

    if total_length is None:
        with pytest.raises(RecompileError):
            run()
    else:
        run()


def test_bounds_for_flash_attention_compile_once(tokenizer, rows):
    """Their shape and the longest row, a number, stay the same; so does a function of them."""
    packing = DataCollatorWithPacking(
        tokenizer, attention="varlen", rng="sample", total_length=128, max_samples=12
    )

    def consume(input_ids, cu_seq_lens_q, max_length_q, **_):
        return input_ids.sum() * max_length_q + cu_seq_lens_q.sum()

    compiled = torch.compile(consume, backend="eager", dynamic=False, fullgraph=True)
    for part in (rows[:4], rows[4:6], rows[6:7] * 8):
        packed = packing(part)
        assert compiled(**packed) == consume(**packed)
