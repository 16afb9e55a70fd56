"""Score predicted labels with scikit-learn."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from maskft.extras import optional


def scores(true: Sequence[int], predicted: Sequence[int], labels: int) -> dict[str, Any]:
    """Return accuracy and macro-F1 over all ``labels``, and the number of rows."""
    metrics = optional("sklearn.metrics", "tasks")
    macro = metrics.f1_score(
        true, predicted, labels=range(labels), average="macro", zero_division=0
    )
    return {
        "accuracy": float(metrics.accuracy_score(true, predicted)),
        "macro_f1": float(macro),
        "rows": len(true),
    }


def majority(train: Sequence[int], true: Sequence[int], labels: int) -> dict[str, Any]:
    """Return the scores of always predicting the most frequent label of ``train``."""
    (label, _), *_ = sorted(Counter(train).items(), key=lambda item: (-item[1], item[0]))
    return scores(true, [label] * len(true), labels)
