"""Gather the predicted rows within the last layer: its feed-forward part needs no others.

The last layer of an encoder mixes tokens in its attention. What follows, up to the loss, treats
each row on its own, so that rows without a label are computed for nothing. Where a layer has a
module that all of them pass right after attention, its residual included, rows are gathered there.
"""

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn

from maskft.collate.labels import IGNORE_INDEX
from maskft.fuse.call import LabelledCall

_LOG = logging.getLogger(__name__)


class EarlyGather:
    """A hook in the last layer of a base model, in place of the one behind the base model.

    Attributes:
        layer: the last one.
        module: the module of it where rows are gathered.
        before: whether that module's arguments are gathered, or what it returns.
    """

    def __init__(self, fused: Any, layers: nn.ModuleList, module: nn.Module, before: bool) -> None:
        self.fused = fused
        self.layers, self.layer = layers, layers[-1]
        self.module, self.before = module, before
        self._hook: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "EarlyGather":
        """Copy within a copy of the model; a copy of a part of it takes no other layers along."""
        state = dict(vars(self))
        if id(self.fused.model) not in memo:
            state |= dict.fromkeys(("layers", "layer", "module", "_hook"))
        twin = object.__new__(EarlyGather)
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(state, memo))
        return twin

    def attach(self) -> None:
        if self.before:
            self._hook = self.module.register_forward_pre_hook(self.enter)
        else:
            self._hook = self.module.register_forward_hook(self.leave)

    def detach(self) -> None:
        self._hook.remove()

    def fits(self, kwargs: dict[str, Any]) -> bool:
        """Say whether a call needs of the last layer's other rows nothing at all.

        Not so: hidden states that are returned; recomputation in the backward pass, which knows no
        call; feed-forward in chunks, whose number of rows may not divide; a layer that something
        has since wrapped.
        """
        config, layer = self.fused.model.config, self.layer
        hidden = kwargs.get("output_hidden_states")
        hidden = getattr(config, "output_hidden_states", False) if hidden is None else hidden
        return not (
            hidden
            or kwargs.get("encoder_hidden_states") is not None
            or (getattr(layer, "gradient_checkpointing", False) and layer.training)
            or getattr(layer, "chunk_size_feed_forward", 0)
            or self.layers[-1] is not layer
        )

    def enter(self, module: nn.Module, args: Any) -> Any:
        call = self.fused.now.call
        if call is None or not call.early or call.gathered or not _of(call, args):
            return None
        call.gathered = True
        return tuple(call.predicted(hidden) for hidden in args)

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        call = self.fused.now.call
        if call is None or not call.early or call.gathered or not _of(call, (output,)):
            return None
        call.gathered = True
        return call.predicted(output)


def early_gather(fused: Any) -> EarlyGather | None:
    """Find where the last layer of a fused model's base model may gather; None: nowhere.

    What a layer's modules are called gives candidates. They are tried: the base model is run in
    evaluation mode on 2 rows of 8 tokens, gathering and not, and the results must be the same.
    """
    model = fused.model
    base = model.base_model
    if base is model or any(_unusual(p) for p in base.parameters()):
        return None
    for layers, module, before in _candidates(base):
        found = EarlyGather(fused, layers, module, before)
        if found.fits({}) and _same(found, base):
            return found
    return None


def _candidates(base: nn.Module) -> list[tuple[nn.ModuleList, nn.Module, bool]]:
    found = []
    for layers in base.modules():
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            continue
        layer = layers[-1]
        attention = getattr(layer, "attention", None)
        output = getattr(attention, "output", None)
        if isinstance(output, nn.Module) and not hasattr(layer, "crossattention"):
            found.append((layers, output, True))  # BERT's: takes the attention's and the residual
        for owner, name in ((layer, "sa_layer_norm"), (attention, "LayerNorm")):
            norm = getattr(owner, name, None)
            if isinstance(norm, nn.Module):  # DistilBERT's, MPNet's: the residual is in it
                found.append((layers, norm, False))
    return found


@torch.no_grad()
def _same(gather: EarlyGather, base: nn.Module) -> bool:
    """Say whether the base model's results do not change."""
    size = gather.fused.model.config.get_text_config().vocab_size
    device = next(base.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size // 2, size, (2, 8), generator=generator).to(device)
    labels = ids.clone()
    labels[:, ::3] = IGNORE_INDEX
    call = LabelledCall(labels, None, labels, None, evaluation=True)
    call.choose(None, False, None)
    call.early = True
    training = {module: module.training for module in base.modules()}
    base.eval()
    gather.attach()
    try:
        expected = base(input_ids=ids)
        gather.fused.now.call = call
        found = base(input_ids=ids)
    except Exception as error:  # whatever a model raises that counts on all rows
        _LOG.info("no rows are gathered in the last layer of %s: %s", type(base).__name__, error)
        return False
    finally:
        gather.fused.now.call = None
        gather.detach()
        for module, mode in training.items():
            module.training = mode
    if not call.gathered:
        return False
    first, *others = _tensors(expected)
    mine, *rest = _tensors(found)
    pairs = zip([call.predicted(first), *others], [mine, *rest], strict=False)
    return len(others) == len(rest) and all(_close(a, b) for a, b in pairs)


def _tensors(outputs: Any) -> list[Tensor]:
    values = outputs.values() if hasattr(outputs, "values") else outputs
    return [value for value in values if isinstance(value, Tensor)]


def _close(a: Tensor, b: Tensor) -> bool:
    """Say whether two results differ by no more than the order of their sums does."""
    tolerance = 1e-5 if a.dtype in (torch.float32, torch.float64) else 3e-2
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max())


def _of(call: LabelledCall, hidden: Any) -> bool:
    """Say whether all of ``hidden`` are hidden states of the rows of a call."""
    shape = call.targets.shape
    return bool(hidden) and all(isinstance(h, Tensor) and h.shape[:-1] == shape for h in hidden)


def _unusual(parameter: Tensor) -> bool:
    return parameter.device.type == "meta" or hasattr(parameter, "placements")
