"""Loss and gradients of fused models equal stock's, over the classes that Transformers maps.

All masked ones and a sample of the others; ``python -m tests.parity`` does the whole.
"""

import pytest

from tests.parity import classes, sweep

pytestmark = pytest.mark.slow

# Of each way to a loss: plain, scaled, capped, scaled hidden states, a bias of its own, a base
# model that is only called in part, a cut vocabulary, losses beside this one, no shift, an encoder.
SAMPLE = {
    "llama", "qwen3", "gpt2", "opt", "bloom", "mamba2", "cohere", "granite", "granitemoe",
    "hyperclovax", "falcon_h1", "minicpm3", "gemma2", "gemma3_text", "recurrent_gemma", "nanochat",
    "phi", "inkling_text", "mixtral", "modernbert-decoder", "xlnet", "trocr", "whisper",
    "llama4", "marian", "t5", "umt5", "switch_transformers", "t5gemma", "fsmt", "encoder-decoder",
    "led", "m2m_100", "seamless_m4t", "pegasus",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return sweep([(k, t) for k, t in classes() if k == "masked" or t in SAMPLE])


def test_at_least_46_masked_classes_agree_with_stock(rows):
    masked = [row for row in rows if row["kind"] == "masked"]
    assert len(masked) == 51
    assert sum(row.get("agrees", False) for row in masked) >= 46


def test_all_that_can_be_compared_agree_with_stock(rows):
    compared = {row["class"]: row["agrees"] for row in rows if "agrees" in row}
    assert all(compared.values()), [name for name, agrees in compared.items() if not agrees]
    failed = [row for row in rows if row.get("stage") == "fused"]
    assert not failed


def test_the_sample_can_be_compared(rows):
    missing = [row for row in rows if row["type"] in SAMPLE and "agrees" not in row]
    assert not missing


def test_losses_run_in_the_decoder_but_for_a_few(rows):
    on_logits = {row["class"] for row in rows if row.get("in_decoder") is False}
    assert on_logits == {
        "MobileBertForMaskedLM",
        "PerceiverForMaskedLM",
        "InklingForCausalLM",
        "FSMTForConditionalGeneration",
    }
