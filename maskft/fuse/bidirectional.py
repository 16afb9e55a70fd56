"""Let a causal model attend both ways, as masked objectives need, and prove on it that it does."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskft.fuse.head import unwrap

LENGTH = 8  # tokens of the row that a model is tried on


@dataclass(frozen=True)
class Attention:
    """What one call of a model shows about which tokens see which.

    Attributes:
        sees_last: whether the first token's logits depend on the last token.
        sees_padding: whether they depend on tokens that the attention mask leaves out.
        causal: names of the layers that mix tokens and whose first output sees no later input.
        mixing: how many layers were found to mix tokens.
    """

    sees_last: bool
    sees_padding: bool
    causal: tuple[str, ...]
    mixing: int


def make_bidirectional(model: Any) -> Any:
    """Let the tokens of a causal ``model`` attend to later tokens too.

    Acts on this one object, which it returns; ``make_causal`` undoes it. ``config.is_causal`` is
    set to False, Transformers' own switch, and so is ``is_causal`` of the attention modules, which
    SDPA and FlashAttention read where the model passes nothing on. Then the model is called on
    eight tokens, with and without padding, and gradients show of each layer whether its first
    output depends on later inputs: nothing stays causal unnoticed. A model that attends both ways
    already stays as it is.

    What a row predicts does not change: a causal class is trained to predict the next token
    (shifted labels, as Dream keeps them), and ``fuse_loss(model, shift=False)`` lets each row
    predict its own token (as in LLaDA). ``config.use_cache`` is set to False: keys and values of
    earlier tokens depend on later ones. Both are saved with the model; a call after loading shows
    that it still attends both ways. Rows packed without padding must be kept apart by a mask or by
    FlashAttention's lengths: call this before a packing collator is made for the model.

    Args:
        model: a Transformers model with ``logits``, or a PEFT or DDP model of one.

    Raises:
        TypeError: no Transformers model, or a compiled one.
        ValueError: a model that stays causal, in whole or in some of its layers (recurrent and
            chunked ones), or that would then see padding. It is left as it was.

    Examples:
        >>> from maskft import make_bidirectional
        >>> make_bidirectional(model) is model  # BERT attends both ways: nothing to do
        True
    """
    inner = unwrap(model)
    if _made(inner) is not None or _attends_already(inner):
        return model
    before: list[tuple[Any, str, Any]] = []
    for owner, name in _switches(inner):
        before.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, False)
    inner._causal_before = before
    try:
        problem = _problem(inner)
    except Exception as error:  # whatever a model raises that has masks of its own
        problem = f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem:
        make_causal(inner)
        raise ValueError(f"{type(inner).__name__} cannot attend both ways: {problem}")
    return model


def make_causal(model: Any) -> Any:
    """Undo ``make_bidirectional``; a model that it did not change stays as it is.

    Examples:
        >>> from maskft import make_bidirectional, make_causal
        >>> make_causal(make_bidirectional(model)) is model
        True
    """
    inner = unwrap(model)
    for owner, name, value in _made(inner) or ():
        if value is None:
            delattr(owner, name)
        else:
            setattr(owner, name, value)
    if _made(inner) is not None:
        del inner._causal_before
    return model


@torch.no_grad()
def attends_both_ways(model: Any) -> bool:
    """Say whether a token's logits depend on later tokens: whether they change with those.

    By medians over the vocabulary: a few huge logits, as of tokens that are never to be predicted,
    hide no change of the others.
    """
    training = _evaluating(model)
    try:
        first, other = (_logits(model, 0, seed)[0, 0].float() for seed in (0, 1))
    finally:
        _restore(training)
    precision = torch.finfo(next(model.parameters()).dtype).eps  # causal models may round otherwise
    change, size = (float(x.abs().nanmedian()) for x in (first - other, first))
    return change > precision**0.5 * size


def _attends_already(model: Any) -> bool:
    if not attends_both_ways(model):
        return False
    return not any(attention_of(model, padding).causal for padding in (0, 2))


def _problem(model: Any) -> str | None:
    """Say why ``model`` does not attend both ways; None where each of its layers does.

    It is called with and without padding, which may take different kernels.
    """
    for padding in (0, 2):
        seen = attention_of(model, padding)
        how = "with padding" if padding else "without padding"
        if not seen.sees_last:
            return f"{how}, its first token does not see the last"
        if seen.causal:
            names = ", ".join(seen.causal[:3]) + (", ..." if len(seen.causal) > 3 else "")
            return f"{how}, {len(seen.causal)} of {seen.mixing} layers stay causal ({names})"
        if not seen.mixing:
            return "no list of layers is found in it, so that they cannot be examined"
        if seen.sees_padding:
            return "its tokens would see padding"
    return None


def attention_of(model: Any, padding: int) -> Attention:
    """Call ``model`` on a row of random tokens and see what its first token depends on.

    An element of a gradient is exactly 0 where nothing depends on it, in any dtype.

    Args:
        model: a Transformers model.
        padding: how many tokens at the end the attention mask leaves out; 0: no mask is given.
    """
    watched: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}
    start: list[Tensor] = []

    def embedded(_: nn.Module, __: Any, output: Any) -> Any:
        if start or not isinstance(output, Tensor):
            return None
        start.append(output.detach().requires_grad_())
        return start[0].clone()  # a model may write into it

    def enter(layer: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if layer in watched or _token_axis(hidden) is None:
            return None
        cut = hidden.detach().requires_grad_()
        watched[layer] = (cut, None)
        if args:
            return (cut.clone(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": cut.clone()}

    def leave(layer: nn.Module, _: Any, output: Any) -> None:
        output = output[0] if isinstance(output, (tuple, list)) else output
        if layer in watched and watched[layer][1] is None and _token_axis(output) is not None:
            watched[layer] = (watched[layer][0], output)

    layers = dict(_layers(model))
    hooks: list[Any] = []
    training = _evaluating(model)
    real = LENGTH - padding
    try:
        with torch.enable_grad():
            for layer in layers.values():
                hooks.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
                hooks.append(layer.register_forward_hook(leave))
            _logits(model, padding)
            while hooks:
                hooks.pop().remove()
            hooks.append(model.get_input_embeddings().register_forward_hook(embedded))
            logits = _logits(model, padding)
    finally:
        for hook in hooks:
            hook.remove()
        _restore(training)
    first = _dependence(logits, start[0] if start else None, 0)
    mixing, causal = 0, []
    for name, layer in layers.items():
        cut, output = watched.get(layer, (None, None))
        if output is None or not _dependence(output, cut, real - 1)[: real - 1].any():
            continue  # not called, or it mixes no tokens
        mixing += 1
        if not _dependence(output, cut, 0)[1:real].any():
            causal.append(name)
    return Attention(bool(first[real - 1]), bool(first[real:].any()), tuple(causal), mixing)


def _logits(model: Any, padding: int, seed: int = 0) -> Tensor:
    """Return the logits [1, T, V] of a row of random tokens; the first is the same for any seed."""
    size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    ids = torch.randint(size // 2, size, (1, LENGTH), generator=generator).to(device)
    ids[0, 0] = size - 1
    inputs: dict[str, Any] = {"input_ids": ids}
    if padding:
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][:, LENGTH - padding :] = 0
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        inputs["use_cache"] = False
    return model(**inputs, return_dict=True).logits


def _token_axis(hidden: Any) -> int | None:
    """Find the axis of tokens in hidden states of one row; None: these are none."""
    if not isinstance(hidden, Tensor) or not hidden.is_floating_point() or hidden.dim() < 3:
        return None
    if tuple(hidden.shape[:2]) == (1, LENGTH):
        return 1
    if tuple(hidden.shape[:2]) == (LENGTH, 1):  # XLNet
        return 0
    return hidden.dim() - 2 if tuple(hidden.shape[-3:-1]) == (1, LENGTH) else None  # Gemma 3n


def _dependence(output: Tensor, source: Tensor | None, place: int) -> Tensor:
    """Say of each token of ``source`` whether ``output`` at ``place`` depends on it: bool [T]."""
    nothing = torch.zeros(LENGTH, dtype=torch.bool)
    axis = _token_axis(output)
    if source is None or axis is None or not output.requires_grad:
        return nothing
    row = output.select(axis, place)
    generator = torch.Generator().manual_seed(1)  # the plain sum of a normalised row is constant
    direction = torch.randn(row.shape, generator=generator).to(row)
    (gradient,) = torch.autograd.grad(
        (row * direction).sum(), source, retain_graph=True, allow_unused=True
    )
    axis = _token_axis(source)
    if gradient is None or axis is None:
        return nothing
    return gradient.movedim(axis, 0).reshape(LENGTH, -1).ne(0).any(1).cpu()


def _evaluating(model: Any) -> dict[nn.Module, bool]:
    """Put ``model`` in evaluation mode; return what mode its modules were in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    return training


def _restore(training: dict[nn.Module, bool]) -> None:
    for module, mode in training.items():
        module.training = mode


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Find the entries of the outermost ModuleLists."""
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        if isinstance(child, nn.ModuleList):
            for number, layer in enumerate(child):
                yield f"{path}.{number}", layer
        else:
            yield from _layers(child, path)


def _switches(model: Any) -> Iterator[tuple[Any, str]]:
    """Find what says that attention is causal, of the model and its configurations."""
    from transformers import PreTrainedConfig

    seen: set[int] = set()
    for module in model.modules():
        if vars(module).get("is_causal") is True:
            yield module, "is_causal"
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            yield config, "is_causal"
            if getattr(config, "use_cache", None):
                yield config, "use_cache"


def _made(model: Any) -> list[tuple[Any, str, Any]] | None:
    return vars(model).get("_causal_before")
