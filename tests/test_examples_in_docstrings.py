"""The examples in the docstrings of the public names, run as a user would run them.

Examples for Transformers find a tokenizer, rows, a model and a Trainer already made.
"""

import doctest
import inspect
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from transformers import Trainer, TrainingArguments

import maskft
import maskft.annotate
import maskft.prompt
import maskkernels
from tests.support.small import CORPUS, build_bert, build_wordpiece

OBJECTS = [
    (f"{package.__name__}.{name}", getattr(package, name))
    for package in (maskkernels, maskft, maskft.annotate, maskft.prompt)
    for name in sorted(package.__all__)
]
EXPLAINED = [(name, made) for name, made in OBJECTS if not isinstance(made, int)]  # STARTS, ENDS


@pytest.fixture
def names(tmp_path):
    """What an example of maskft may use without making it."""
    tokenizer = build_wordpiece()
    rows = [dict(tokenizer(text)) for text in CORPUS[:4]]
    with_sentinels = build_wordpiece()
    with_sentinels.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    with_sentinels.add_tokens([f"<extra_id_{i}>" for i in reversed(range(20))], special_tokens=True)
    model = build_bert(tokenizer)
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True),
        train_dataset=rows,
        data_collator=maskft.DataCollatorForLanguageModeling(tokenizer),
    )
    return {
        "tokenizer": tokenizer, "rows": rows, "t5_tokenizer": with_sentinels,
        "bart_tokenizer": with_sentinels, "model": model, "trainer": trainer,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "made"), EXPLAINED, ids=[name for name, _ in EXPLAINED])
def test_example_runs(name, made, names, capsys):
    examples = doctest.DocTestParser().get_doctest(
        inspect.getdoc(made) or "", names, name, None, None
    )
    assert examples.examples, f"the docstring of {name} has no example"
    result = doctest.DocTestRunner().run(examples)
    assert result.failed == 0, capsys.readouterr().out
