"""Examples to columns, and what every collator says of examples that it cannot take."""

from collections.abc import Iterable, Mapping
from typing import Any


def check_examples(examples: list[Any]) -> None:
    if not examples:
        raise empty_batch()
    if set(map(type, examples)) <= {dict}:  # the usual case, at once
        return
    first = isinstance(examples[0], Mapping)
    for i, example in enumerate(examples):
        if isinstance(example, str) or not hasattr(example, "__len__"):
            raise TypeError(
                f"example {i} must be a mapping or a sequence of ids, got {type(example).__name__}"
            )
        if isinstance(example, Mapping) != first:
            raise TypeError(
                "a batch is either all mappings or all sequences of ids; example 0 is a "
                f"{type(examples[0]).__name__}, example {i} a {type(example).__name__}"
            )


def by_column(examples: list[Mapping[str, Any]], names: Iterable[str]) -> dict[str, list[Any]]:
    """The columns of these names; one that an example lacks is an error."""
    names = list(names)
    try:
        return {name: [example[name] for example in examples] for name in names}
    except KeyError:
        for i, example in enumerate(examples):
            for name in names:
                if name not in example:
                    raise missing_column(i, name, example) from None
        raise


def empty_batch() -> ValueError:
    return ValueError("the batch is empty: a collator needs at least one example")


def missing_column(i: int, name: str, example: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"example {i} has no column {name!r}; it has {sorted(example)}. "
        "(Trainer drops columns the model does not take: maskft.attach(trainer) "
        "keeps the sample ids, remove_unused_columns=False keeps everything.)"
    )
