"""Fill in the masks of texts step by step, the most certain first."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskft.fuse import attends_both_ways, predicts_next
from maskft.insight.logits import device_of, evaluating, language_model, predicted_logits
from maskft.insight.windows import longest_row
from maskkernels import hash_rows, random_words
from maskkernels.rng import TOKEN

_ROWS = 256  # rows of logits in float64 at a time


@dataclass(frozen=True)
class Generated:
    """Texts with their masks filled in, and what that took.

    Attributes:
        texts: decoded without special tokens, in the order of the prompts.
        input_ids: the ids of each, special tokens included.
        forward_passes: calls of the model.
        head_rows: rows of logits that its head computed.
        seconds: of the whole call.
    """

    texts: list[str]
    input_ids: list[list[int]]
    forward_passes: int
    head_rows: int
    seconds: float


@dataclass(frozen=True)
class Sampling:
    """The options of ``generate`` that a step needs.

    Attributes:
        forbidden: ids that are never put in place of a mask.
        size: ids below it are the tokenizer's.
    """

    mask_id: int
    pad_id: int
    forbidden: Tensor
    size: int
    steps: int | None
    temperature: float
    seed: int
    shift: bool


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Iterable[str],
    *,
    length: int = 0,
    steps: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    special_tokens: bool = False,
    shift: bool | None = None,
    batch_size: int = 16,
) -> Generated:
    """Fill in the masks of ``prompts`` in a few steps, as masked diffusion models generate text.

    A step predicts all masks of a text at once and keeps the tokens with the highest confidence;
    the others stay masked (low-confidence remasking: Chang et al. 2022, MaskGIT; Nie et al. 2025,
    LLaDA). A text with n masks takes S = min(steps, n) steps, of which step s keeps n // S tokens,
    and one more where s < n % S. The confidence of a token is its probability, softmax(logits); of
    equal ones the earlier position is kept.

    At a temperature T above 0, tokens are drawn from softmax(logits / T), in float64: the first id
    whose cumulative probability exceeds (w + 0.5) / 2^32. That is the distribution of Gumbel noise
    on the logits, with one word for each token. w is the word of the random contract for (seed,
    epoch = s, stream 12, hash of the prompt's ids, position): a text does not depend on the other
    prompts, nor on the batch size, except where rounding decides between two tokens and for the few
    models whose tokens see padding (ConvBERT, FNet). Equal prompts are filled equally.

    The head computes the masked positions only.

    Args:
        model: a masked language model, a causal one after ``make_bidirectional``, or a DDP or PEFT
            model of one; left in the mode it was in.
        tokenizer: the model's, with a mask token.
        prompts: texts that contain the mask token.
        length: how many masks to append to each.
        steps: at most so many for each text. None: one for each mask, the slowest and best.
        temperature: 0: the most probable token.
        seed: in [0, 2^64).
        special_tokens: whether special tokens may be put in place of a mask. The mask token is
            never.
        shift: whether a token is predicted by the row before it. None: as the model is fused, or
            as its class computes its loss (a causal class: the row before).
        batch_size: texts in a call of the model.

    Raises:
        TypeError: ``prompts`` that are not texts, or an option of another type.
        ValueError: a text without a mask or longer than the model takes; a tokenizer without mask
            token; a causal model; an option out of range.

    Examples:
        >>> from maskft import generate
        >>> made = generate(model, tokenizer, ["the quick [MASK] fox"], length=2)
        >>> made.forward_passes, made.head_rows, "[MASK]" in made.texts[0]
        (3, 6, False)
    """
    began = time.perf_counter()
    prompts = _texts(prompts)
    _check(special_tokens, shift, temperature)
    _check_counts(length=(length, 0), steps=(1 if steps is None else steps, 1),
                  batch_size=(batch_size, 1))  # fmt: skip
    inner, mask = language_model(model), tokenizer.mask_token_id
    if mask is None:
        raise ValueError(
            "the tokenizer has no mask token; a model that was trained with one names it: "
            'tokenizer.add_special_tokens({"mask_token": "[MASK]"})'
        )
    if not attends_both_ways(inner):
        raise ValueError(
            f"{type(inner).__name__} is causal: its tokens do not see what follows a mask. "
            "make_bidirectional(model) is for a model that was trained that way"
        )
    shift = predicts_next(inner) if shift is None else shift
    texts = [prompt + tokenizer.mask_token * length for prompt in prompts]
    rows = [_encode(text, tokenizer, inner, shift) for text in texts]
    sampling = Sampling(
        mask_id=mask,
        pad_id=mask if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        forbidden=torch.tensor([mask] if special_tokens else tokenizer.all_special_ids),
        size=len(tokenizer),
        steps=steps,
        temperature=float(temperature),
        seed=seed,
        shift=shift,
    )
    passes = computed = 0
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # little padding
    with evaluating(model):
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            filled, calls, head_rows = _fill(model, [rows[i] for i in batch], sampling)
            passes, computed = passes + calls, computed + head_rows
            for i, row in zip(batch, filled, strict=True):
                rows[i] = row
    ids = [row.tolist() for row in rows]
    decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    return Generated(decoded, ids, passes, computed, time.perf_counter() - began)


def _fill(model: Any, rows: list[Tensor], sampling: Sampling) -> tuple[list[Tensor], int, int]:
    """Fill in a batch of rows; return them, the calls of the model and the rows of its head."""
    sizes = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence(rows, True, sampling.pad_id)  # [B, T]
    real = torch.arange(ids.shape[1]) < sizes[:, None]
    samples = hash_rows(ids, attention_mask=real)
    masks = ((ids == sampling.mask_id) & real).sum(1)
    steps = masks if sampling.steps is None else masks.clamp(max=sampling.steps)  # [B]
    device, calls, computed = device_of(model), 0, 0
    for step in range(int(steps.max())):
        left = (step < steps).nonzero().squeeze(1)  # the rows that still have masks
        width = int(sizes[left].max())
        part, seen = ids[left, :width], real[left, :width]
        row, place = ((part == sampling.mask_id) & seen).nonzero(as_tuple=True)  # R masks
        inputs = {"input_ids": part.to(device), "attention_mask": seen.long().to(device)}
        where = row * width + place - int(sampling.shift)
        logits = predicted_logits(model, inputs, where.to(device))
        words = random_words(
            samples[left][row], place, seed=sampling.seed, epoch=step, stream=TOKEN
        )
        token, confidence = _draw(logits, words, sampling)
        keep = masks[left] // steps[left] + (step < masks[left] % steps[left]).long()
        kept = _most_confident(confidence, row, keep)
        ids[left[row[kept]], place[kept]] = token[kept]
        calls, computed = calls + 1, computed + len(row)
    return [row[:size] for row, size in zip(ids, sizes.tolist(), strict=True)], calls, computed


def _draw(logits: Tensor, words: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw a token for each row of ``logits`` [R, V]: (ids [R], their probabilities [R])."""
    tokens, confidences = [], []
    forbidden = sampling.forbidden[sampling.forbidden < min(sampling.size, logits.shape[1])]
    forbidden = forbidden.to(logits.device)
    for part, word in zip(logits.split(_ROWS), words.split(_ROWS), strict=True):
        scores = part[:, : sampling.size].double().index_fill(1, forbidden, -math.inf)
        if sampling.temperature:
            below = scores - scores.amax(-1, keepdim=True)  # first: a quotient may be infinite
            total = (below / sampling.temperature).softmax(-1).cumsum(-1)
            point = (word.to(total.device)[:, None].double() + 0.5) / 2**32 * total[:, -1:]
            token = torch.searchsorted(total, point, right=True)
        else:
            token = scores.argmax(-1, keepdim=True)
        tokens.append(token.squeeze(1).cpu())
        confidences.append(scores.softmax(-1).gather(1, token).squeeze(1).cpu())
    return torch.cat(tokens), torch.cat(confidences)


def _most_confident(confidence: Tensor, row: Tensor, keep: Tensor) -> Tensor:
    """Find the ``keep[b]`` masks of each row b with the highest confidence: places in [0, R).

    Args:
        confidence, row: [R], of each mask, in order of row and position.
        keep: [B].
    """
    order = confidence.sort(descending=True, stable=True).indices
    order = order[row[order].sort(stable=True).indices]  # by row, then by confidence
    count = row.bincount(minlength=len(keep))
    rank = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
    return order[rank < keep[row]]


def _encode(text: str, tokenizer: Any, model: Any, shift: bool) -> Tensor:
    ids = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64)
    masked = ids == tokenizer.mask_token_id
    if not masked.any():
        raise ValueError(
            f"no {tokenizer.mask_token} in {text!r}: that is this model's mask token; "
            "length=n appends n of them"
        )
    if len(ids) > (limit := longest_row(tokenizer, model)):
        raise ValueError(f"the text has {len(ids)} tokens, the model takes {limit}")
    if shift and masked[0]:
        raise ValueError(f"no token before the first mask of {text!r}, which would predict it")
    return ids


def _texts(prompts: Any) -> list[str]:
    given = prompts
    if isinstance(prompts, Iterable) and not isinstance(prompts, str):
        given = list(prompts)  # an iterator gives its texts once
        if all(isinstance(prompt, str) for prompt in given):
            return given
    raise TypeError(f"prompts must be a list of texts, got {given!r:.80}")


def _check(special_tokens: Any, shift: Any, temperature: Any) -> None:
    for name, value in (("special_tokens", special_tokens), ("shift", shift)):
        if not isinstance(value, bool) and (name, value) != ("shift", None):
            raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature must be a number, got {type(temperature).__name__}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")


def _check_counts(**counts: tuple[Any, int]) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
