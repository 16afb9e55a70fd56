"""Run a fused model: its ``forward``, a hook on its base model, its decoder and its loss.

All are attributes of the one instance, which ``FusedForward.attach`` sets and ``detach`` takes away
again; what they replace is in ``replaced.py``.
"""

import copy
import inspect
import logging
from dataclasses import dataclass
from operator import attrgetter
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from maskft.fuse.call import LabelledCall, Now, decoded_dtype, shifted, targets_of, weighing
from maskft.fuse.early import early_gather
from maskft.fuse.head import Head, add_decoder_inputs, hooked, router_losses
from maskft.fuse.later import LaterLogits, Replay, refuse_logits
from maskft.fuse.replaced import (
    DecoderForward,
    FusedLossFunction,
    forward_function,
    name_of,
    no_replica,
    refuse_transforms,
    signature_of,
    wraps,
)
from maskkernels.loss import linear_cross_entropy, masked_cross_entropy

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The options of ``fuse_loss``, and whether the loss replaces the decoder."""

    logits: bool | str
    capacity: int | None
    label_smoothing: float
    z_loss: float
    in_decoder: bool
    backend: str

    def of_loss(self) -> dict[str, Any]:
        return {
            "label_smoothing": self.label_smoothing,
            "z_loss": self.z_loss,
            "backend": self.backend,
        }


class FusedForward:
    """The ``forward`` of a fused model: a bound method of this, an attribute of that one instance.

    Not bound to the model: a pickle finds a method by its name, which there is the class's own.
    """

    def __init__(self, model: Any, head: Head, options: Options) -> None:
        self.model = model
        self.head = head
        self.options = options
        self.decoder = model.get_output_embeddings() if options.in_decoder else None
        self.now = Now()
        self.early = early_gather(self)
        self.verified = False  # that nothing but ``head`` says happens to the logits
        self.noticed = False  # that another forward has taken the place of this one
        self.function = forward_function(signature_of(model))
        self._before: dict[str, Any] = {}
        self._hook: Any = None

    @property
    def _fused_forward(self) -> Any:
        return MethodType(self.function, self)

    def __reduce__(self) -> Any:
        state = {name: value for name, value in vars(self).items() if name != "function"}
        signature = inspect.signature(self._fused_forward)
        return _with_signature, (signature,), state

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedForward":
        """Copy within a copy of the model. Where only a part is copied (PEFT: the decoder), the
        twin is idle, so that it does not take the whole model along."""
        state = dict(vars(self))
        if id(self.model) not in memo:
            state |= {"model": None, "decoder": None, "_hook": None, "early": None, "_before": {}}
        twin = object.__new__(FusedForward)
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(state, memo))
        return twin

    def attach(self) -> None:
        model = self.model
        mine: dict[str, Any] = {
            "_fused_loss": self, "forward": self._fused_forward, "accepts_loss_kwargs": True,
            "_replicate_for_data_parallel": no_replica,
        }  # fmt: skip
        if self.head.calls_loss_function:
            mine["_loss_function"] = FusedLossFunction(self, model.loss_function)
        if self.head.shift != self.head.shifts_itself:  # by this, Trainer counts labels
            mine["loss_type"] = "ForCausalLM" if self.head.shift else "ForMaskedLM"
        self._before = {name: vars(model).get(name) for name in mine}
        for name, value in mine.items():
            setattr(model, name, value)
        base = model.base_model
        if base is not model and base is not self.decoder:
            self._hook = base.register_forward_hook(self.gather)
        if self.early is not None:
            self.early.attach()
        if self.decoder is not None:
            self.decoder.forward = DecoderForward(self, self.decoder)

    def detach(self) -> None:
        model = self.model
        now = vars(model).get("forward")
        if getattr(now, "__func__", None) is not self.function:
            if wraps(now, self.function):
                raise ValueError(
                    "model.forward has been wrapped since fuse_loss; take that off first "
                    "(accelerator.unwrap_model(model, keep_fp32_wrapper=False))"
                )
            raise ValueError(
                f"model.forward has been replaced since fuse_loss by {name_of(now)}; put back the "
                "one that fuse_loss set, which was model.forward after it, and unfuse then"
            )
        for name, value in self._before.items():
            delattr(model, name)
            if value is not None:
                setattr(model, name, value)
        if self._hook is not None:
            self._hook.remove()
        if self.early is not None:
            self.early.detach()
        if self.decoder is not None:
            del self.decoder.forward

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        kwargs.update(zip(self.head.parameters, args, strict=False))
        num_items, weights = weighing(kwargs)
        positions = kwargs.pop("label_positions", None)
        wanted = kwargs.pop("return_logits", None)
        labels = kwargs.get("labels")
        if labels is None:
            return self._unlabelled(kwargs)
        refuse_transforms()
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
        if router_losses(self.head, self.model, kwargs):
            raise TypeError(f"a fused {self.head.name} takes no output_router_logits with labels")
        targets = targets_of(labels, kwargs.get("shift_labels"), self.head.shift)
        evaluation = not (self.model.training or torch.is_grad_enabled())
        call = LabelledCall(
            targets, num_items, labels, kwargs.get("shift_labels"), evaluation=evaluation
        )
        shift = self.head.shift and kwargs.get("shift_labels") is None
        call.weigh(weights, shift)
        logits = self._logits(wanted, evaluation)
        if logits != "now":
            call.choose(positions, shift, self.options.capacity)
            early = self.early
            call.early = early is not None and call.rows is not None and early.fits(kwargs)
            decoder = self.decoder
            call.in_decoder = (
                decoder is not None
                and self.model.get_output_embeddings() is decoder
                and not hooked(decoder)  # a hook expects logits
            )
        return self._run(call, kwargs, logits)

    def _unlabelled(self, kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():  # with no hook that asks
            return self._stock(kwargs)
        inside, self.now.inside = self.now.inside, True
        try:
            return self._stock(kwargs)
        finally:
            self.now.inside = inside

    def _logits(self, wanted: bool | None, evaluation: bool) -> str:
        """Decide when a call makes its logits: "now", "later", "never", "refused" to readers."""
        option = self.options.logits
        if wanted is None:
            wanted = self.now.logits
        if wanted is not None:
            return "now" if wanted else "never"
        if option == "auto":
            if torch.compiler.is_compiling():
                return "now" if evaluation else "never"
            if not evaluation:
                self.now.read = False
                return "never"
            return "now" if self.now.read else "later"
        if option is False and evaluation and not torch.compiler.is_compiling():
            return "refused"
        return "now" if option is True or (option and not self.model.training) else "never"

    def _later(self, call: LabelledCall, kwargs: dict[str, Any], made: Tensor) -> LaterLogits:
        """Return the logits of a call that has ``made`` others, or a stand-in."""
        replay = Replay(self.model, kwargs, made.device.type)

        def compute() -> Tensor:
            logits = getattr(replay(), self.head.logits)
            self.now.read = True  # the next calls compute theirs at once
            return logits

        shape, dtype = (*call.targets.shape, made.shape[-1]), call.dtype or made.dtype
        refused = self.options.logits is False
        return LaterLogits(shape, dtype, made.device, refuse_logits if refused else compute)

    def gather(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Hook of the base model: keep the hidden states of the predicted rows only."""
        call = self.now.call
        if call is None or call.rows is None or call.gathered:
            if call is None and not torch.compiler.is_compiling():
                self._notice()
            return None
        hidden = output[0]
        if not isinstance(hidden, Tensor) or hidden.shape[:-1] != call.targets.shape:
            return None
        call.gathered = True
        if isinstance(output, tuple):
            return (call.predicted(hidden), *output[1:])
        output[next(iter(output.keys()))] = call.predicted(hidden)
        return output

    def decode(self, call: LabelledCall, hidden: Tensor, decoder: nn.Linear) -> Tensor:
        """Compute what the decoder returns in place of logits: [..., V], every element the loss."""
        head = self.head
        if call.stand_in is not None:
            raise RuntimeError(f"{head.name} calls its decoder more than once: use linear=False")
        if hasattr(decoder.weight, "placements"):
            raise RuntimeError(
                f"the decoder of {head.name} is called outside of FSDP: its weight is sharded"
            )
        labels, flat, call.dtype = call.labels(), hidden, decoded_dtype(hidden)
        if not call.gathered:
            if hidden.shape[:-1] != call.targets.shape:
                raise RuntimeError(
                    f"{head.name} hands its decoder {tuple(hidden.shape)} for labels of shape "
                    f"{tuple(call.targets.shape)}: give each row a label, or use linear=False"
                )
            flat = call.predicted(hidden)
        elif hidden.shape[:-1].numel() != labels.numel():
            raise RuntimeError(
                f"{head.name} decodes {hidden.shape[:-1].numel()} of {labels.numel()} predicted "
                "rows: logits_to_keep does not go with labels"
            )
        loss = linear_cross_entropy(
            flat.reshape(*labels.shape, hidden.shape[-1]),
            decoder.weight,
            labels.to(hidden.device),
            self._bias(decoder),
            softcap=head.softcap,
            logit_scale=head.scale,
            **call.of_loss(labels, hidden.device),
            **self.options.of_loss(),
        ).loss
        call.stand_in = call.settle(loss).expand(*[1] * (hidden.dim() - 1), decoder.out_features)
        return call.stand_in

    def check_labels(
        self, call: LabelledCall, labels: Tensor | None, shift_labels: Tensor | None
    ) -> None:
        """Refuse a model whose loss is not on the labels that it was called with."""
        if labels is call.labels_given and shift_labels is call.shift_labels_given:
            return
        if torch.compiler.is_compiling() or self.verified:
            return
        own = shift_labels
        if own is None and labels is not None:
            own = shifted(labels) if self.head.shift else labels
        targets = call.targets.reshape(-1)
        if own is None or not torch.equal(own.reshape(-1).to(targets.device), targets):
            raise TypeError(
                f"fuse_loss does not cover {self.head.name}: it computes its loss on other labels "
                "than those it is called with"
            )

    def finish(self, call: LabelledCall, logits: Tensor) -> Tensor:
        """Compute the loss of a call from the ``logits``, or the stand-in, that the model made."""
        name = self.head.name
        if call.loss is not None:
            raise TypeError(f"{name} computes more than one loss; fuse_loss does not cover that")
        if not call.in_decoder:
            labels = call.labels() if call.gathered else call.targets
            if logits.shape[:-1].numel() != labels.numel():
                raise TypeError(
                    f"fuse_loss does not cover {name}: it makes logits {tuple(logits.shape)} for "
                    f"labels {tuple(labels.shape)}"
                )
            logits = logits.reshape(*labels.shape, logits.shape[-1])
            options = call.of_loss(labels, logits.device) | self.options.of_loss()
            loss = masked_cross_entropy(logits, labels.to(logits.device), **options).loss
            call.loss = call.settle(loss)
            return call.loss
        if call.stand_in is None:
            raise RuntimeError(f"{name} does not call its decoder: use linear=False")
        if not torch.compiler.is_compiling() and not self.verified:
            self._verify(call.stand_in.detach(), logits.detach())
        call.loss = call.stand_in.reshape(-1)[0]
        return call.loss

    def _run(self, call: LabelledCall, kwargs: dict[str, Any], logits: str) -> Any:
        inputs = dict(kwargs)
        as_tuple = inputs.get("return_dict")
        as_tuple = not (self.model.config.return_dict if as_tuple is None else as_tuple)
        if not self.head.calls_loss_function:
            # Its place in a tuple counts; a mapping does without, which is cheaper.
            if "use_cache" in self.head.parameters and (self.head.drops_cache or not as_tuple):
                inputs.setdefault("use_cache", False)
            add_decoder_inputs(self.head, self.model, inputs, inputs.pop("labels"))
        if as_tuple:
            inputs["return_dict"] = True
        self.now.call = call
        try:
            outputs = self._stock(inputs)
        finally:
            self.now.call = None
        name = self.head.logits
        if self.head.calls_loss_function:
            if call.loss is None:
                raise RuntimeError(f"{self.head.name} did not call its loss function")
            loss = outputs.loss  # of ``call``, and what the model adds to it
        else:
            loss = self.finish(call, outputs[name])
            if sentence := self.head.sentence:
                loss = call.with_sentences(loss, outputs[sentence[1]], kwargs.get(sentence[0]))
        fields = {name: outputs[name] for name in outputs.keys()}  # noqa: SIM118
        fields["loss"] = loss
        if logits == "later" or (logits == "refused" and not as_tuple):
            fields[name] = self._later(call, kwargs, fields[name])
        elif logits == "never" and not as_tuple:
            fields.pop(name)
        outputs = type(outputs)(**fields)
        if not as_tuple:
            return outputs
        gone = name if logits in ("never", "refused") else None
        return tuple(None if key == gone else value for key, value in outputs.items())

    def _notice(self) -> None:
        """Say once that the base model runs in another forward than the fused one."""
        if self.model is None or self.noticed or self.now.inside:
            return
        now = vars(self.model).get("forward")
        if wraps(now, self.function):
            return
        self.noticed = True
        _LOG.warning(
            "%s.forward has been replaced since fuse_loss by %s, which computes its own head and "
            "loss: the fused loss does not run. Use one of the two", self.head.name, name_of(now),
        )  # fmt: skip

    def _stock(self, kwargs: dict[str, Any]) -> Any:
        before = self._before["forward"]
        if before is not None:
            return before(**kwargs)
        return type(self.model).forward(self.model, **kwargs)

    def _added_bias(self) -> Tensor | None:
        bias = self.head.bias
        return None if bias is None else attrgetter(bias)(self.model).reshape(-1)

    def _bias(self, decoder: nn.Linear) -> Tensor | None:
        own, added = decoder.bias, self._added_bias()
        return (own if added is None else added) if own is None or added is None else own + added

    def _verify(self, stand_in: Tensor, logits: Tensor) -> None:
        """Refuse a model that does something to its logits that ``head`` does not say.

        What the decoder returned is a number that the model treats as it would treat logits.
        """
        z = stand_in.float()
        bias = self._added_bias()
        z = (z if bias is None else z + bias.detach().float()) * self.head.scale
        cap = self.head.softcap
        z = cap * torch.tanh(z / cap) if cap else z
        exact = logits.dtype in (torch.float32, torch.float64)
        tolerance = 1e-4 if exact else 1e-2
        if logits.shape != z.shape or not torch.allclose(
            logits.float(), z, rtol=tolerance, atol=1e-6, equal_nan=True
        ):
            raise RuntimeError(
                f"{self.head.name} does something to its logits that fuse_loss does not know: "
                "fuse it with linear=False"
            )
        self.verified = bool((stand_in != 0).any())  # a loss of 0 says little


def _with_signature(signature: inspect.Signature) -> FusedForward:
    """Begin a FusedForward that a pickle then fills: the model takes its method before."""
    made = object.__new__(FusedForward)
    made.function = forward_function(signature)
    return made
