"""Score variants of a protein or DNA sequence by masked marginals."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maskft.insight.copies import BATCH_TOKENS, run
from maskft.insight.encode import Text, TextEncoder, check_masked_model
from maskft.insight.logits import evaluating, language_model
from maskft.insight.score import check_batch_tokens

_SUBSTITUTION = re.compile(r"([A-Za-z*-])(\d+)([A-Za-z*-])")


@dataclass(frozen=True)
class VariantScore:
    """Hold the score of a variant.

    Attributes:
        variant: as it was given.
        score: the sum over its substitutions of log p(new) - log p(old), nats. Above 0: the model
            prefers the variant.
    """

    variant: str
    score: float


class Substitution(NamedTuple):
    """Hold one substitution: the letters, and the place in the sequence, from 0."""

    old: str
    place: int
    new: str


def score_variants(
    model: Any,
    tokenizer: Any,
    sequence: str,
    variants: Sequence[str],
    *,
    first_position: int = 1,
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    name: str = "variants",
) -> list[VariantScore]:
    """Score variants of a sequence by masked marginals (Meier et al. 2021).

    A variant is a substitution such as "A24G", or several joined by ":". All of its places are
    hidden at once, and its score is the sum of log p(new) - log p(old) over them. Variants of the
    same places share a row of the model: all substitutions of a sequence of n letters cost n rows.

    In a sequence that is longer than the model takes, the places are in the middle of a window.

    Args:
        sequence: letters without spaces; the tokenizer must have a token for each.
        first_position: the number of the first letter.
        max_length, batch_tokens: as for ``score``.
        name: of ``variants``, for errors.

    Raises:
        ValueError: a variant that is not written so or does not match the sequence; a tokenizer
            whose tokens are not letters; places that are too far apart for the model.
        TypeError: a model that fills no masks.

    Examples:
        >>> from maskft import score_variants
        >>> from tests.support.insight import protein_model  # a model of yours
        >>> found = score_variants(*protein_model(), "MKTAYI", ["K2R", "K2R:A4G"])
        >>> [one.variant for one in found]
        ['K2R', 'K2R:A4G']
    """
    if isinstance(variants, str):
        raise TypeError(f"variants must be a list, got the string {variants[:30]!r}")
    check_batch_tokens(batch_tokens)
    inner = language_model(model)
    check_masked_model(inner, tokenizer)
    encoder = TextEncoder(inner, tokenizer, max_length, 1)
    text = letters(encoder, sequence)
    parsed = [
        parse(variant, sequence, first_position, f"{name}[{i}]")
        for i, variant in enumerate(variants)
    ]
    places = [tuple(sorted(s.place for s in substitutions)) for substitutions in parsed]
    distinct = list(dict.fromkeys(places))
    hidden = [np.array(some, np.int64) for some in distinct]
    copies = encoder.hide(text, hidden, hidden)
    wanted = {letter: _id_of(tokenizer, letter) for some in parsed for s in some for letter in
              (s.old, s.new)}  # fmt: skip
    ids = sorted({i for i in wanted.values() if i is not None})
    column = {i: n for n, i in enumerate(ids)}
    table: dict[tuple[int, ...], np.ndarray] = {}
    with evaluating(model):
        for order, logits in run(
            model, copies, mask_id=encoder.mask_id, pad_id=encoder.pad_id,
            batch_tokens=batch_tokens,
        ):  # fmt: skip
            logprobs = logits.log_softmax(-1)[:, ids].cpu().double().numpy()
            sizes = np.cumsum([len(distinct[i]) for i in order])[:-1]
            table |= {distinct[i]: part for i, part in
                      zip(order, np.split(logprobs, sizes), strict=True)}  # fmt: skip
    found = []
    for variant, substitutions, of_variant in zip(variants, parsed, places, strict=True):
        total = 0.0
        for s in substitutions:
            new, old = wanted[s.new], wanted[s.old]
            if new is None or old is None:
                raise ValueError(
                    f"{variant}: {type(tokenizer).__name__} has no token for "
                    f"{s.new if new is None else s.old!r}"
                )
            row = table[of_variant][of_variant.index(s.place)]
            total += float(row[column[new]] - row[column[old]])
        found.append(VariantScore(variant, total))
    return found


def parse(variant: str, sequence: str, first_position: int, where: str) -> list[Substitution]:
    """Read a variant such as "A24G" or "A24G:L30P".

    Raises:
        ValueError: it is not written so, or does not match ``sequence``.
    """
    found: list[Substitution] = []
    for part in variant.split(":") if isinstance(variant, str) else [str(variant)]:
        match = _SUBSTITUTION.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{where} must be substitutions such as A24G, joined by ':', got {variant!r}"
            )
        old, number, new = match[1], int(match[2]), match[3]
        place = number - first_position
        if not 0 <= place < len(sequence):
            raise ValueError(
                f"{where}: {part} is outside of the sequence, which has positions "
                f"{first_position} to {first_position + len(sequence) - 1} (first_position= says "
                "where it begins)"
            )
        if sequence[place] != old:
            raise ValueError(
                f"{where}: {part} does not match the sequence, which has {sequence[place]} at "
                f"position {number} (first_position={first_position})"
            )
        if any(other.place == place for other in found):
            raise ValueError(f"{where}: {variant} names position {number} twice")
        found.append(Substitution(old, place, new))
    return found


def letters(encoder: TextEncoder, sequence: str) -> Text:
    """Encode a sequence, a token for each letter.

    Raises:
        ValueError: the tokenizer makes other tokens of it.
    """
    if not sequence or not sequence.isascii() or sequence.split() != [sequence]:
        raise ValueError(
            f"sequence must be letters without spaces, at least one, got {sequence[:40]!r}"
        )
    for written in (sequence, " ".join(sequence)):  # as ESM's tokenizers take it, and ProtBert's
        text = encoder([written], "sequence")[0]
        ids = [_id_of(encoder.tokenizer, letter) for letter in sequence]
        if text.ids.tolist() == ids:
            return Text(sequence, text.ids, None, np.ones(len(ids), bool))
    raise ValueError(
        f"{type(encoder.tokenizer).__name__} does not make a token of each letter of the sequence "
        f"{sequence[:20]!r}: masked marginals need a model of single letters"
    )


def _id_of(tokenizer: Any, letter: str) -> int | None:
    """Return the token of a letter as the tokenizer writes it alone; None if it has none."""
    ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None
