"""Turn text files or a dataset into rows of token ids in three splits.

The split rule: u = blake2b(text) / 2^64 of the UTF-8 bytes; a text is test if u < test_fraction,
validation if u < test_fraction + validation_fraction, else train. It does not depend on the order
or on the other texts, and equal texts land in the same split. A dataset that comes with validation
or test splits keeps them; only those it lacks are taken from train.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import datasets
import pyarrow
from datasets import Dataset, DatasetDict, Features, Value, load_from_disk

from maskft.cli.config import MASK_ONLY_COLUMN, DataArguments
from maskft.cli.formats import LONGEST_TEXT, one_line, refuse_column, too_long
from maskft.cli.messages import UsageError
from maskft.cli.reading import NAMES, cache_errors, read
from maskft.insight.windows import longest_row

SPLITS = ("train", "validation", "test")
AT_ONCE = 1 << 22  # characters that are tokenized at once, which takes some 170 bytes for each
OTHER_NAMES = {"valid": "validation", "dev": "validation", "eval": "validation"}


def load_texts(args: DataArguments) -> dict[str, Dataset]:
    """Load the texts of each split into a column "text", the second texts of pairs into "pair".

    Rows without text are left out, and pairs without one of the two. The first text of a pair
    decides its split.

    Raises:
        UsageError: a file or column that cannot be read, or a split that comes out empty.
    """
    datasets.disable_progress_bars()
    if args.dataset:
        given = _from_folder(args)
    else:
        parts = [read(name, args.columns()) for name in args.train_file]
        given = {"train": datasets.concatenate_datasets(parts)}
    shares = {"test": args.test_fraction, "validation": args.validation_fraction}
    shares = {name: 0.0 if name in given else share for name, share in shares.items()}
    if any(shares.values()):
        train = given["train"]
        names = [split_of(text, shares["test"], shares["validation"]) for text in train["text"]]
        for name in SPLITS:
            if name == "train" or shares[name]:
                given[name] = train.select([i for i, n in enumerate(names) if n == name])
    for name, split in given.items():
        if not len(split):
            total = sum(len(s) for s in given.values())
            raise UsageError(
                f"the {name} split is empty: there are {total} texts in all; give more text or "
                "another --validation-fraction or --test-fraction (0 leaves a split out)"
            )
    return given


def split_of(text: str, test_fraction: float, validation_fraction: float) -> str:
    """Choose the split of a text; see the rule at the top of this file."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    u = int.from_bytes(digest, "big") / 2**64
    if u < test_fraction:
        return "test"
    return "validation" if u < test_fraction + validation_fraction else "train"


def row_length(tokenizer: Any, model: Any, given: int | None) -> int:
    """Return the tokens in a row: ``given``, or 512, or what tokenizer and model take if less."""
    limit = longest_row(tokenizer, model)
    if given is not None and given > limit:
        raise UsageError(f"--max-length {given} is more than the model takes: {limit}")
    return given or min(limit, 512)


def tokenize(
    texts: Dataset,
    tokenizer: Any,
    max_length: int,
    annotator: Any = None,
    mask_only: tuple[int, ...] | None = None,
    stride: int = 0,
    processes: int | None = None,
) -> Dataset:
    """Make rows of at most ``max_length`` token ids; a longer text continues in further rows.

    A pair of texts (columns "text" and "pair") shares its rows. If one is too long, each of its
    parts goes with the whole other text; if both are, the n-th part of one goes with the n-th of
    the other, and the remaining parts of one with the last part of the other.

    Args:
        annotator: adds columns to the rows (``maskft.annotate``); None adds none.
        mask_only: adds the column "mask_only": 1 for tokens of the first text (0), the second (1)
            or both, else 0. Unlike token types, every fast tokenizer can tell. None adds none.
        stride: the tokens that a row of a longer text repeats of the row before.
        processes: in how many processes texts are tokenized; None means in this one.

    Raises:
        UsageError: an annotator or a pair, and a tokenizer that does not locate its tokens
            in the text; a row too short for a pair; a stride that no row can keep.
    """
    paired = "pair" in texts.column_names
    if (annotator is not None or paired) and not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} does not give the offsets of its tokens, which "
            "entities, keywords, --words and --pair-column need; use a model with a fast tokenizer"
        )
    if paired and max_length < tokenizer.num_special_tokens_to_add(pair=True) + 2:
        raise UsageError(f"--max-length {max_length} leaves no room for a pair of texts")
    if stride:
        _check_stride(stride, max_length, tokenizer, paired)

    def rows(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {}
        for part in _parts(batch):
            for name, column in encode(part).items():
                made.setdefault(name, []).extend(column)
        return made

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        pairs = batch.get("pair")
        encoded = tokenizer(
            batch["text"],
            pairs,
            truncation=not paired,
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=tokenizer.is_fast and not paired,
            return_offsets_mapping=annotator is not None,
            verbose=False,  # it would warn of pairs that are cut below
        )
        made = {k: encoded[k] for k in tokenizer.model_input_names if k in encoded}
        if annotator is not None:
            made |= annotator.columns(batch["text"], encoded, pairs)
        sides: list[list[int | None]] = []
        if mask_only is not None or paired:
            sides = [encoded.sequence_ids(row) for row in range(len(encoded["input_ids"]))]
        if mask_only is not None:
            made[MASK_ONLY_COLUMN] = [[int(side in mask_only) for side in row] for row in sides]
        if not paired:
            return made
        parts = [(row, part) for row, of_token in enumerate(sides)
                 for part in _abreast(of_token, max_length)]  # fmt: skip
        return {
            name: [[column[row][i] for i in part] for row, part in parts]
            for name, column in made.items()
        }

    with cache_errors():
        return texts.map(rows, batched=True, remove_columns=texts.column_names, num_proc=processes)


def _check_stride(stride: int, max_length: int, tokenizer: Any, paired: bool) -> None:
    if paired or not tokenizer.is_fast:
        why = "pairs of texts" if paired else f"{type(tokenizer).__name__}, which is not fast"
        raise UsageError(f"--stride {stride} is not for {why}")
    room = max_length - tokenizer.num_special_tokens_to_add()
    if not 0 < stride < room:
        raise UsageError(
            f"--stride must be in [0, {room}), what a row of {max_length} tokens holds of a text; "
            f"got {stride}"
        )


def _parts(batch: dict[str, list[str]]) -> Iterator[dict[str, list[str]]]:
    """Cut a batch of texts into batches of few characters, or of one row."""
    begin = size = 0
    lengths = [sum(map(len, row)) for row in zip(*batch.values(), strict=True)]
    for end, length in enumerate(lengths):
        if begin < end and size + length > AT_ONCE:
            yield {name: column[begin:end] for name, column in batch.items()}
            begin, size = end, 0
        size += length
    yield {name: column[begin:] for name, column in batch.items()}


def _abreast(sides: Sequence[int | None], length: int) -> list[list[int]]:
    """Cut a pair of texts into rows, each a list of places in the whole pair.

    Args:
        sides: of each token, the text it is of (0, 1), or None for special tokens.
        length: of a row, at most. The longer text is cut first, down to half of the row's room.
    """
    places = [[i for i, side in enumerate(sides) if side == wanted] for wanted in (0, 1)]
    around = [i for i, side in enumerate(sides) if side is None]
    room = length - len(around)
    short = min(*map(len, places), room // 2)
    rooms = [short, room - short] if len(places[0]) <= len(places[1]) else [room - short, short]
    cut = [
        [text[i : i + size] for i in range(0, len(text), max(size, 1))] or [text]
        for text, size in zip(places, rooms, strict=True)
    ]
    first, second = cut
    return [
        sorted([*around, *first[min(n, len(first) - 1)], *second[min(n, len(second) - 1)]])
        for n in range(max(map(len, cut)))
    ]


def _from_folder(args: DataArguments) -> dict[str, Dataset]:
    name = f"--dataset {args.dataset}"
    if "::" in str(args.dataset):
        raise UsageError(f"{name}: datasets takes '::' in a folder's name for a chain of them")
    try:
        loaded = load_from_disk(str(args.dataset))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UsageError(f"{name}: {one_line(error)}") from None
    except IndexError:  # what datasets says of one that was saved without rows
        raise UsageError(f"{name}: the dataset is empty") from None
    given = dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
    given = {OTHER_NAMES.get(name, name): split for name, split in given.items()}
    if "train" not in given:
        raise UsageError(f"{name} has no train split; it has {sorted(given)}")
    kept = {name: given[name] for name in SPLITS if name in given}
    return {name: _texts_only(split, str(args.dataset), args) for name, split in kept.items()}


def _texts_only(split: Dataset, name: str, args: DataArguments) -> Dataset:
    """Keep the rows that have text in each column of text, under the names "text" and "pair"."""
    columns = args.columns()
    if any("." in column and column not in split.column_names for column in columns):
        split = split.flatten()  # members of structs become columns "a.b"
    for column in columns:
        refuse_column(name, column, split.features.arrow_schema)
    split = split.select_columns(columns)
    split = split.rename_columns(
        {old: new for old, new in zip(columns, NAMES, strict=False) if old != new}
    )

    def kept(*row: Any) -> bool:
        *texts, number = row
        for text in texts:
            if text and len(text) > LONGEST_TEXT:
                raise too_long(f"{name}: row {number + 1}", len(text))
        return all(text and text.strip() for text in texts)

    with cache_errors():
        try:
            text = Features({new: Value("string") for new in split.column_names})
            if split.features.arrow_schema.types != text.arrow_schema.types:
                split = split.cast(text)  # a copy on the disk
            return split.filter(kept, input_columns=split.column_names, with_indices=True)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise UsageError(f"{name}: {one_line(error)}") from None
