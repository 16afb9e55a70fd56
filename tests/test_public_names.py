"""The public names of both packages."""

import ast
import subprocess
import sys
from pathlib import Path

import maskft
import maskkernels

MASKFT = [
    "DataCollatorForLanguageModeling",
    "DataCollatorForSpanCorruption",
    "DataCollatorForTextInfilling",
    "DataCollatorWithPacking",
    "MaskInputs",
    "MaskingCallback",
    "PackedBatchSampler",
    "Plan",
    "RateSchedule",
    "Strategy",
    "Tokens",
    "UnmaskedCollator",
    "attach",
    "compare_models",
    "detach",
    "explain",
    "fuse_loss",
    "generate",
    "make_bidirectional",
    "make_causal",
    "mask_batch",
    "score",
    "score_pairs",
    "score_variants",
    "unfuse_loss",
]
MASKKERNELS = [
    "CorruptedRows",
    "Denoiser",
    "ENDS",
    "IGNORE_INDEX",
    "LossOutput",
    "MaskedTokens",
    "MaskingPolicy",
    "PackedRows",
    "Packing",
    "ReplacedTokens",
    "STARTS",
    "SpanCorruption",
    "TextInfilling",
    "corrupt_spans",
    "corrupted_lengths",
    "geometric_lengths",
    "hash_rows",
    "infill_text",
    "linear_cross_entropy",
    "mask_tokens",
    "masked_cross_entropy",
    "pack_rows",
    "pad_batch",
    "pad_corrupted",
    "pad_rows",
    "random_words",
    "rates_from_weights",
    "replace_tokens",
    "span_units",
    "threshold",
    "ul2_denoisers",
    "units_from_offsets",
    "units_from_word_ids",
    "word_units",
]


def test_dir_lists_the_public_names_of_maskft():
    assert dir(maskft) == sorted(maskft.__all__) == MASKFT
    for name in MASKFT:
        assert getattr(maskft, name).__name__ == name


def test_maskkernels_lists_its_public_names():
    assert sorted(maskkernels.__all__) == MASKKERNELS
    assert all(hasattr(maskkernels, name) for name in MASKKERNELS)


def test_type_checkers_see_the_names_that_load_on_first_use():
    tree = ast.parse(Path(maskft.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imported = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert imported == maskft._HOMES


WITHOUT_THE_EXTRA = """
import sys
for name in ("accelerate", "datasets", "rich"):
    sys.modules[name] = None  # what an import of it then raises is ModuleNotFoundError
import maskft
from maskft.cli import main
from tests.support.small import CORPUS, build_wordpiece
tokenizer = build_wordpiece()
rows = [dict(tokenizer(text)) for text in CORPUS]
assert all(getattr(maskft, name) for name in maskft.__all__)
batch = maskft.DataCollatorForLanguageModeling(tokenizer, strategy="whole_word", seed=1)(rows)
assert (batch["labels"] != -100).any()
for command in ("train", "preview"):
    assert main([command, "--help"]) == 2
"""


def test_the_drop_in_path_needs_no_extra_and_the_command_line_names_it():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_EXTRA], capture_output=True, text=True, check=True
    )
    install = "not installed: pip install 'maskkernels[train]'"
    assert done.stderr.splitlines() == [
        f"maskft train: this needs accelerate, datasets and rich, which are {install}",
        f"maskft preview: this needs datasets and rich, which are {install}",
    ]
