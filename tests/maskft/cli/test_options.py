"""Errors of options name them."""

import re

import pytest

from maskft.cli import UsageError, main
from maskft.cli.config import MaskingArguments
from maskft.cli.formats import LONGEST_TEXT
from tests.support.small import CORPUS


@pytest.fixture
def model_dir(tiny_bert, tokenizer, tmp_path):
    tiny_bert.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(CORPUS))
    return str(path)


MISTAKES = [
    ("--strategy ngram --ngram 0", r"--ngram: n must be in \[1, 64\], got 0"),
    ("--strategy span --span-p 3", r"--span-p: p must be in \(0, 1\], got 3.0"),
    (
        "--strategy span --span-p 0.2 --span-longest 0",
        "--span-p, --span-longest: longest must be an int in",
    ),
    ("--strategy entity --entity-rate 7", "--entity-rate: rate must be between 0 and 1, got 7.0"),
    ("--strategy entity --entity-rest some", "--entity-rest: rest must be"),
    ("--strategy span --span-words maybe", "--span-words must be on or off, got 'maybe'"),
    ("--span-words off", "--span-words goes with --strategy span or ngram, not random"),
    ("--replacement-ids none", r"--replacement-ids must be one of \('all', 'ordinary'\), got 'non"),
    ("--mlm-probability 2", r"mlm_probability should be between 0 and 1.*mlm_probability=2.0"),
    ("--such 1", "unknown options: --such 1"),
    ("--dataset D", "give the text with --train-file or with --dataset, one of the two"),
    ("--train-file " + "a" * 300 + ".txt", "File name too long"),
]


@pytest.mark.parametrize(("options", "match"), MISTAKES)
def test_an_error_names_the_option(options, match, model_dir, text, capsys):
    arguments = ["preview", "--model", model_dir, "--train-file", text, *options.split()]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(match, error)


@pytest.mark.parametrize("option", ["entities", "keywords"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"fox\t1\n\xff\t2\n", "line 2 is not UTF-8 .*convert the file"),
        (b"a\0b\t1\n", "line 1 has a NUL byte"),
        (b"a" * (LONGEST_TEXT + 1), "line 1 is longer than 8,388,608 bytes"),
        (None, "No such file"),
    ],
)
def test_a_list_that_is_no_text_is_one_sentence(option, content, match, tmp_path):
    """Also one of gigabytes without a newline, of which no more than a line is read."""
    path = tmp_path / "list[1].txt"
    (tmp_path / "list1.txt").write_text("never read\t1\n")
    if content is not None:
        path.write_bytes(content)
    masking = MaskingArguments(strategy={"entities": "entity", "keywords": "keyword"}[option])
    setattr(masking, option, str(path))
    with pytest.raises(UsageError, match=rf"--{option} .*list\[1\].txt: .*{match}"):
        masking.annotator(None)


@pytest.mark.parametrize("given", ["all", "ordinary"])
def test_random_tokens_are_drawn_from_the_ids_of_the_option(given, tokenizer):
    """All, as Transformers does, or all but the special ones."""
    random = {"mlm_probability": 1.0, "mask_replace_prob": 0.0, "random_replace_prob": 1.0}
    collator = MaskingArguments(replacement_ids=given, **random).collator(tokenizer, seed=1)
    drawn = set(collator([[40] * 4000])["input_ids"][0].tolist())
    special = set(tokenizer.all_special_ids)
    assert drawn == set(range(len(tokenizer))) - (special if given == "ordinary" else set())
