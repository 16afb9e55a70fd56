"""Columns next to the ids that do not fit: the error names the column, the row and the value."""

import pytest

from maskft import DataCollatorForLanguageModeling, DataCollatorWithPacking
from maskft.strategy import Entity, FromColumns, Keyword, WholeWord
from tests.support.small import build_wordpiece

COLUMNS = {
    "offset_mapping": WholeWord(),
    "word_ids": WholeWord(),
    "entity_ids": Entity(),
    "keyword_weights": Keyword(),
    "question": WholeWord(),
    "units": FromColumns(units="units"),
    "rates": FromColumns(rates="rates"),
}
PAIR = [(0, 3), (4, 7)]
BAD = [
    ("offset_mapping", None, "must have an entry for each token, got NoneType"),
    ("offset_mapping", [(0, 3), None], r"must hold pairs \(begin, end\), got None"),
    ("offset_mapping", [(0, 3, 1), (4, 7, 1)], r"pairs \(begin, end\), got \(0, 3, 1\)"),
    ("offset_mapping", [0, 3], r"pairs \(begin, end\), got 0"),
    ("offset_mapping", [(0, 3.5), (4, 7)], "holds 3.5"),
    ("word_ids", None, "must have an entry for each token, got NoneType"),
    ("word_ids", ["a", 0], "holds 'a'"),
    ("word_ids", [0.5, 0], "holds 0.5"),
    ("word_ids", [2**70, 0], "does not fit in 64 bits"),
    ("entity_ids", ["a", 0], "holds 'a'"),
    ("entity_ids", [None, 0], "holds None"),
    ("units", [1.5, 0], "holds 1.5"),
    ("question", [None, 1], "holds None"),
    ("keyword_weights", ["a", 1.0], "must hold a number for each token, got 'a'"),
    ("keyword_weights", [1.0, None], "must hold a number for each token, got None"),
    ("keyword_weights", [[1.0], [2.0]], r"must hold a number for each token, got \[1.0\]"),
    ("rates", [1.0, None], "must hold a number for each token, got None"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
@pytest.mark.parametrize("packed", [False, True])
def test_a_column_that_does_not_fit_is_named(name, value, message, packed):
    tokenizer = build_wordpiece()
    kind = DataCollatorWithPacking if packed else DataCollatorForLanguageModeling
    options = {"attention": "block_diagonal"} if packed else {}
    collator = kind(
        tokenizer,
        strategy=COLUMNS[name],
        mask_only="question" if name == "question" else None,
        **options,
    )
    ids = tokenizer("the fox", add_special_tokens=False)["input_ids"]
    good = {"offset_mapping": PAIR, "keyword_weights": [1.0, 1.0], "rates": [0.1, 0.1]}
    rows = [{"input_ids": ids, name: each} for each in (good.get(name, [0, 1]), value)]
    with pytest.raises((TypeError, ValueError), match=f"row 1 of {name} .*{message}"):
        collator(rows)
