"""Run the host code of the GPU's loss benchmark on the CPU: ``python -m pytest benchmarks``."""

import pytest
import torch

from benchmarks.bench_loss_gpu import BOUND, LOGITS, Shape, head, measure


@pytest.mark.parametrize("logits", LOGITS)
def test_a_small_head_is_checked_and_timed(logits):
    rows = measure("small", Shape(64, 16, 130, 0.5), logits, "cpu", torch.float32, repeats=2)
    by_name = {row["what"]: row for row in rows}
    assert by_name["linear_cross_entropy"]["weight_error"] < 1e-5 < BOUND
    assert by_name["linear_cross_entropy"]["p50"] > 0
    assert "three products of the labelled rows, rows padded to 64" in by_name


def test_peaked_logits_prefer_the_label():
    given = head(Shape(64, 256, 130, 0.5), "peaked", "cpu", torch.float32)
    logits = given.hidden[given.positions] @ given.weight.t()
    assert (logits.argmax(1) == given.chosen).float().mean() > 0.9
