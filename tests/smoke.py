"""Use an installed wheel that has its base dependencies only; run by tests/package.sh."""

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

EXTRAS = ("accelerate", "datasets", "rich", "sklearn", "spacy", "jieba", "matplotlib")


def main() -> None:
    """Mask a batch and train a step, and check that nothing of an extra was needed."""
    import maskft
    import maskkernels

    here = Path(maskkernels.__file__).resolve()
    assert "site-packages" in here.parts, f"imported {here}, not the installed wheel"
    assert (here.parent / "py.typed").is_file()
    import tokenizers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *["the", "cat", "sat", "on", "a", "mat"]]
    model = tokenizers.models.WordPiece({word: i for i, word in enumerate(words)})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    collator = maskft.DataCollatorForLanguageModeling(
        tokenizer, rng="sample", seed=1, mlm_probability=0.5
    )
    rows = [{"input_ids": [2, 5, 6, 7, 8, 9, 10, 3]}, {"input_ids": [2, 6, 7, 3]}]
    batch = collator(rows)
    assert bool((batch["labels"] >= 0).any())
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    net = BertForMaskedLM(config).eval()
    stock = net(**{k: v for k, v in batch.items() if k != "label_positions"}).loss.detach()
    fused = maskft.fuse_loss(net)(**batch).loss
    assert abs(stock - fused.detach()) < 1e-5, (stock, fused)
    fused.backward()
    used = [name for name in EXTRAS if name in sys.modules and find_spec(name)]
    assert not used, f"the drop-in path imports {used}"
    present = [name for name in EXTRAS if find_spec(name)]
    print(f"maskkernels {version('maskkernels')}: loss {fused.item():.4f}; not here: "
          f"{[name for name in EXTRAS if name not in present]}")  # fmt: skip


if __name__ == "__main__":
    main()
