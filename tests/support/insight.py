"""A tokenizer of residues, a token a letter, as protein models have."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def build_proteins() -> PreTrainedTokenizerFast:
    special = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, *RESIDUES])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>", special_tokens=[("<cls>", 0), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<cls>", eos_token="<eos>", unk_token="<unk>",
        pad_token="<pad>", mask_token="<mask>", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def protein_model() -> tuple[BertForMaskedLM, PreTrainedTokenizerFast]:
    """A model of residues with random weights, and its tokenizer."""
    tokenizer = build_proteins()
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    return BertForMaskedLM(config).eval(), tokenizer
