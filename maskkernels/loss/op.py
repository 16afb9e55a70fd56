"""The losses as PyTorch's dispatcher sees them: one op, its fake and its gradient."""

import torch
from torch import Tensor

from maskkernels.backend import Op, current, home_of
from maskkernels.loss.job import LossJob

_TENSORS = [
    i for i, k in enumerate(LossJob.__annotations__.values()) if k in (Tensor, Tensor | None)
]
_LEAVES = 3  # input, weight and bias come first, whether each needs a gradient last
_REDUCTION = LossJob._fields.index("reduction")


def _fake(job):
    empty = job.input.new_empty
    loss = empty(job.rows if job.reduction == "none" else (), dtype=torch.float32)
    asked = (job.accuracy, job.entropy, job.top_k)
    statistics = (empty(() if ask else 0, dtype=torch.float32) for ask in asked)
    if job.reduction == "none":  # has its gradients in the backward
        job = job._replace(input_grad=False, weight_grad=False, bias_grad=False)
    gradients = _fake_gradients(job, job.stored_dtype)
    return loss, empty((), dtype=torch.int64), *statistics, *gradients


def _fake_gradients(job, dtype):
    asked = (job.input_grad, job.weight_grad, job.bias_grad)
    return tuple(
        job.input.new_empty(t.shape if ask else 0, dtype=dtype)
        for t, ask in zip((job.input, job.weight, job.bias), asked, strict=True)
    )


def _fake_backward(grad, job):
    return _fake_gradients(job, job.input.dtype)


def _setup_context(ctx, inputs, output):
    """Keep the gradients for the first backward, and the inputs for another."""
    ctx.save_for_backward(*(inputs[i] for i in _TENSORS))
    ctx.options = [None if i in _TENSORS else value for i, value in enumerate(inputs)]
    ctx.dtype, ctx.is_linear = inputs[0].dtype, inputs[1] is not None
    ctx.set_materialize_grads(False)  # zeros as large as the weight, for what nobody uses
    ctx.mark_non_differentiable(*output[1:-_LEAVES])
    ctx.gradients = None  # else detached: an output would keep this node alive, and it the output
    if inputs[_REDUCTION] != "none":
        ctx.gradients = [g.detach() for g in output[-_LEAVES:]]


def _backward(ctx, grad, *_):
    """Hand the gradients over, so that they exist once; a second backward computes them again."""
    if grad is None:
        return (None,) * len(LossJob._fields)
    asked = list(ctx.needs_input_grad[:_LEAVES])
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None or asked != ctx.options[-_LEAVES:] or torch.is_grad_enabled():
        found = _cross_entropy_backward.registered(grad, *_job(ctx)[:-_LEAVES], *asked)
    else:
        found = [g.to(ctx.dtype) for g in _scaled(ctx, gradients, grad)]
    found = [g if ask else None for g, ask in zip(found, asked, strict=True)]
    return *found, *[None] * (len(LossJob._fields) - _LEAVES)


def _job(ctx):
    arguments = list(ctx.options)
    for i, tensor in zip(_TENSORS, ctx.saved_tensors, strict=True):
        arguments[i] = tensor
    return LossJob(*arguments)


def _scaled(ctx, gradients, grad):
    """Gradients times ``grad``, in place: the first backward is their only user.

    Not where PyTorch traces (its tensors are a subclass then): what a graph has computed in its
    forward pass must not change afterwards.
    """
    if type(grad) is not Tensor:
        return [g * grad for g in gradients]
    kernels = cross_entropy.module(home_of(grad.device.type))
    with current(grad.device):
        if ctx.is_linear:
            kernels.scale(gradients, grad)
        else:
            kernels.scale_rows(gradients[0], grad, _job(ctx))
    return gradients


def _refuse(ctx, *_):
    raise RuntimeError(
        "the fused losses have no gradient of their gradient; backend='reference' has one"
    )


_cross_entropy_backward = Op(
    "loss",
    "cross_entropy_backward",
    fake=_fake_backward,
    arguments={"grad": Tensor, **LossJob.__annotations__},
    results=_LEAVES,
    read=lambda grad, *args: (grad, LossJob(*args)),
    spell=lambda grad, job: (grad, *job),
    backward=_refuse,
)
cross_entropy = Op(  # gives loss, count, accuracy, entropy, top_k (empty unless wanted), gradients
    "loss",
    "cross_entropy",
    fake=_fake,
    job=LossJob,
    results=5 + _LEAVES,
    setup_context=_setup_context,
    backward=_backward,
)
