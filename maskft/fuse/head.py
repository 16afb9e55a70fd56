"""Read what a Transformers language model does between its last hidden states and its loss.

It is read from the instance: its class, code and configuration. ``forward.py`` acts on it.
"""

import dis
import inspect
import itertools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parameter import Buffer

# Classes that are mapped and not covered.
REFUSED = {
    "ProphetNetForCausalLM": "it predicts several tokens ahead, with a loss for each",
    "ProphetNetForConditionalGeneration": "it predicts several tokens ahead, with a loss for each",
    "MusicgenForCausalLM": "it has a decoder for each codebook",
    "MusicgenMelodyForCausalLM": "it has a decoder for each codebook",
    "Gemma4AssistantForCausalLM": "it computes no loss",
    "Gemma4UnifiedAssistantForCausalLM": "it computes no loss",
    "GitForCausalLM": "it shifts its labels past the tokens of its image",
    "GraniteSpeechForConditionalGeneration": "it shifts its labels by its attention mask",
    "GraniteSpeechPlusForConditionalGeneration": "it shifts its labels by its attention mask",
    "Qwen2AudioForConditionalGeneration": "it rebuilds its labels when it merges the audio",
}
# Plain linear decoders that the loss cannot be computed in.
_NOT_THE_DECODER = {
    "MobileBertForMaskedLM": "the weights of its decoder are in two parts",
    "InklingForCausalLM": "it cuts its logits to the vocabulary without padding",
    "Inkling2ForCausalLM": "it cuts its logits to the vocabulary without padding",
}
# What configurations call them; they count where the code of ``forward`` reads them.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_SCALES = ("logit_scale", "lm_head_multiplier", "logits_scaling")
_MULTIPLIED_BY_LOGITS_SCALING = ("HyperCLOVAXForCausalLM",)  # Granite divides
_SCALES_HIDDEN_STATES = ("MiniCPM3ForCausalLM",)
# Models that take padding out of the decoder inputs that they make.
_MASKS_DECODER_INPUTS = ("EncoderDecoderModel",)
# Models with a loss of their sentences too: its argument of labels, its logits among the outputs.
_SENTENCES = {
    "BertForPreTraining": ("next_sentence_label", "seq_relationship_logits"),
    "AlbertForPreTraining": ("sentence_order_label", "sop_logits"),
}
# Biases that are added after the decoder, as attributes of the model.
_BIASES = {"EsmForMaskedLM": "lm_head.bias"}


@dataclass(frozen=True)
class Head:
    """How a model gets from hidden states to its loss.

    Attributes:
        name: the class of the model.
        shift: whether a row predicts the next row's label.
        shifts_itself: whether the stock model's loss is of the next row's label.
        calls_loss_function: whether the model computes its loss with ``self.loss_function``, or
            with code of its own (and then has nothing to add to it).
        decoder_inputs_from_labels: whether ``forward`` makes its decoder's inputs from labels.
        rows_because: why logits are needed; None where the loss can replace the decoder.
        softcap, scale: of the logits.
        bias: the attribute of a bias that is added after the decoder.
        parameters: the names of what ``forward`` takes, in order.
        drops_cache: whether ``forward`` turns the key-value cache off itself.
        logits: what its outputs call them.
        sentence: the labels and the logits of a second loss, of each row's sentences, or None.
    """

    name: str
    shift: bool
    shifts_itself: bool
    calls_loss_function: bool
    decoder_inputs_from_labels: bool
    rows_because: str | None
    softcap: float | None
    scale: float
    bias: str | None
    parameters: tuple[str, ...]
    drops_cache: bool
    logits: str
    sentence: tuple[str, str] | None


def read(model: Any) -> Head:
    """Read the head of a language model.

    Raises:
        TypeError: a class that is not covered, by name.
    """
    owner, called = _owner(model), type(model).__name__
    name = owner.__name__
    if name in REFUSED:
        raise TypeError(f"fuse_loss does not cover {called}: {REFUSED[name]}")
    config = _text_config(model)
    code = getattr(inspect.unwrap(owner.forward), "__code__", None)
    words = () if code is None else code.co_names
    calls = "loss_function" in words
    known = owner.__module__.startswith("transformers.") and name in _mapped()
    if not calls and not known:
        raise TypeError(
            f"fuse_loss does not cover {called}: it is not one of Transformers' masked, causal or "
            "sequence-to-sequence language models, and it does not compute its loss with "
            "self.loss_function"
        )
    decoder = model.get_output_embeddings()
    shifts = _shifts(model) if calls else False
    return Head(
        name=called,
        shift=shifts,
        shifts_itself=shifts,
        # ModernBERT's sparse prediction gathers by the labels, which are gathered for already.
        calls_loss_function=calls and not getattr(model, "sparse_prediction", False),
        decoder_inputs_from_labels="shift_tokens_right" in words or "_shift_right" in words,
        rows_because=_NOT_THE_DECODER.get(name) or _why_not_linear(decoder, config),
        softcap=next((getattr(config, s, None) for s in _SOFTCAPS if s in words), None),
        scale=_scale(name, config, words),
        bias=_BIASES.get(name)
        or ("final_logits_bias" if hasattr(model, "final_logits_bias") else None),
        parameters=tuple(inspect.signature(owner.forward).parameters)[1:],
        drops_cache=_drops_cache(code),
        logits="prediction_logits" if name in _SENTENCES else "logits",
        sentence=_SENTENCES.get(name),
    )


def add_decoder_inputs(head: Head, model: Any, inputs: dict[str, Any], labels: Tensor) -> None:
    """Add to ``inputs`` the decoder's that a forward makes of ``labels`` [B, T]."""
    given = [inputs.get(name) for name in ("decoder_input_ids", "decoder_inputs_embeds")]
    if not head.decoder_inputs_from_labels or any(value is not None for value in given):
        return
    for name, value in _decoder_inputs(model, labels).items():
        if inputs.get(name) is None:
            inputs[name] = value


def _decoder_inputs(model: Any, labels: Tensor) -> dict[str, Tensor]:
    owner = _owner(model)
    config = model.config
    if hasattr(model, "_shift_right"):
        made = model._shift_right(labels)
    else:
        shift = inspect.unwrap(owner.forward).__globals__["shift_tokens_right"]
        takes = len(inspect.signature(shift).parameters)
        ids = (config.pad_token_id, getattr(config, "decoder_start_token_id", None))
        made = shift(labels, *ids[: takes - 1])
    inputs = {"decoder_input_ids": made}
    if owner.__name__ in _MASKS_DECODER_INPUTS:
        inputs["decoder_attention_mask"] = (made != config.pad_token_id).to(made.dtype)
    return inputs


def router_losses(head: Head, model: Any, kwargs: dict[str, Any]) -> bool:
    """Say whether the model adds its router's losses in code of its own."""
    name = "output_router_logits"
    if head.calls_loss_function or name not in head.parameters:
        return False
    given = kwargs.get(name)
    return bool(getattr(model.config, name, False) if given is None else given)


def plain_linear(module: Any) -> bool:
    """Say whether ``module`` computes F.linear(x, weight, bias) with plain tensors, nothing else.

    Not so: adapters (LoRA), quantised layers, modules that another library has wrapped or hooked.
    """
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return False
    plain = type(module.weight) in (Tensor, Parameter, Buffer) or _sharded(module)
    return "forward" not in vars(module) and not hooked(module) and plain


def hooked(module: nn.Module) -> bool:
    """Say whether there are forward hooks, other than FSDP's."""
    return bool(module._forward_hooks or module._forward_pre_hooks) and not _sharded(module)


def _sharded(module: nn.Module) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def unwrap(model: Any) -> Any:
    """Return the Transformers model within DDP, a PEFT model, or both.

    Raises:
        TypeError: no Transformers model, or a compiled one.
    """
    from transformers import PreTrainedModel

    while True:
        if isinstance(model, PreTrainedModel):
            return model
        if hasattr(model, "_orig_mod"):
            raise TypeError("fuse_loss goes before torch.compile: fuse the model, then compile it")
        if hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):  # DDP
            model = model.module
        else:
            raise TypeError(
                f"fuse_loss needs a Transformers language model, got {type(model).__name__}"
            )


def _drops_cache(code: Any) -> bool:
    """Say whether the code has ``use_cache = False``."""
    steps = list(dis.get_instructions(code)) if code else []
    return any(
        value.argval is False and kept.opname.startswith("STORE_") and kept.argval == "use_cache"
        for value, kept in itertools.pairwise(steps)
    )


def _owner(model: Any) -> Any:
    """Find the class whose ``forward`` runs; FSDP and others put their own before it."""
    return next(c for c in type(model).__mro__ if "forward" in vars(c))


def _mapped() -> set[str]:
    from transformers.models.auto import modeling_auto as auto

    return {
        *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values(),
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values(),
        *_SENTENCES,
    }


def _shifts(model: Any) -> bool:
    from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss

    function = model.loss_function
    if function not in (ForCausalLMLoss, ForMaskedLMLoss):
        raise TypeError(
            f"fuse_loss does not cover {type(model).__name__} with the loss function "
            f"{getattr(function, '__name__', function)!r}"
        )
    return function is ForCausalLMLoss


def _text_config(model: Any) -> Any:
    if hasattr(model.config, "get_text_config"):
        return model.config.get_text_config(decoder=True)
    return model.config


def _why_not_linear(decoder: Any, config: Any) -> str | None:
    if decoder is None:
        return "it names no decoder"
    if not plain_linear(decoder):
        return f"its decoder is a {type(decoder).__name__}, not a plain nn.Linear"
    size = getattr(config, "vocab_size", None)
    if size is not None and decoder.weight.shape[0] != size:
        return f"its decoder has {decoder.weight.shape[0]} rows for a vocabulary of {size}"
    return None


def _scale(name: str, config: Any, words: tuple[str, ...]) -> float:
    scale = 1.0
    for attribute in () if name in _SCALES_HIDDEN_STATES else _SCALES:
        factor = getattr(config, attribute, None) if attribute in words else None
        if factor is None:
            continue
        divides = attribute == "logits_scaling" and name not in _MULTIPLIED_BY_LOGITS_SCALING
        scale *= 1 / factor if divides else factor
    return scale
