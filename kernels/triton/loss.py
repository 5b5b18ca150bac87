"""Head and cross-entropy of a small vocabulary: logits are never written.

hidden (rows, width) x head (vocabulary, width) -> log-sum-exp and the target's logit of each row -> loss
"""

import torch
import triton
import triton.language as tl
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.library import triton_op, wrap_triton

from hybridna_kernels.triton import setting, tiles


@triton.jit
def logits_of(
    hidden, head, row, real, width, hidden_row,
    VOCABULARY: tl.constexpr, BLOCK_V: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the logits (ROWS, BLOCK_V) of rows, minus infinity beyond the vocabulary."""
    column, token = tl.arange(0, WIDTH), tl.arange(0, BLOCK_V)
    logits = tl.zeros([ROWS, BLOCK_V], tl.float32)
    for begin in range(0, width, WIDTH):
        inside = begin + column < width
        place = hidden + row[:, None] * hidden_row + begin + column[None, :]
        part = tl.load(place, mask=real[:, None] & inside[None, :], other=0.0).to(OPERAND)
        mask = (token[:, None] < VOCABULARY) & inside[None, :]
        weight = tl.load(head + token[:, None] * width + begin + column[None, :], mask=mask, other=0.0).to(OPERAND)
        logits = tl.dot(part, tl.trans(weight), logits, input_precision=PRECISION)
    return tl.where(token[None, :] < VOCABULARY, logits, float("-inf"))


@triton.jit(do_not_specialize=["rows"])
def loss_kernel(
    hidden, head, target, loss, spread, rows, width, hidden_row,
    VOCABULARY: tl.constexpr, BLOCK_V: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the loss of each row in nats, 0 where the target is negative, and the log-sum-exp of its logits."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    logits = logits_of(hidden, head, row, real, width, hidden_row, VOCABULARY, BLOCK_V, ROWS, WIDTH, OPERAND, PRECISION)
    top = tl.max(logits, axis=1)
    total = top + tl.log(tl.sum(tl.exp(logits - top[:, None]), axis=1))
    wanted = tl.load(target + row, mask=real, other=-1)
    chosen = tl.arange(0, BLOCK_V)[None, :] == wanted[:, None]
    own = tl.sum(tl.where(chosen, logits, 0.0), axis=1)
    tl.store(loss + row, tl.where(wanted >= 0, total - own, 0.0), mask=real)
    tl.store(spread + row, total, mask=real)


@triton.jit(do_not_specialize=["rows"])
def loss_backward_kernel(
    hidden, head, target, spread, dloss, dlogits, rows, width, hidden_row,
    VOCABULARY: tl.constexpr, BLOCK_V: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the logits (rows, VOCABULARY): softmax less one at the target, times that of the loss."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    logits = logits_of(hidden, head, row, real, width, hidden_row, VOCABULARY, BLOCK_V, ROWS, WIDTH, OPERAND, PRECISION)
    wanted = tl.load(target + row, mask=real, other=-1)
    token = tl.arange(0, BLOCK_V)
    share = tl.exp(logits - tl.load(spread + row, mask=real, other=0.0)[:, None])
    share -= tl.where(token[None, :] == wanted[:, None], 1.0, 0.0)
    share *= tl.where(wanted >= 0, tl.load(dloss + row, mask=real, other=0.0).to(tl.float32), 0.0)[:, None]
    mask = real[:, None] & (token[None, :] < VOCABULARY)
    tl.store(dlogits + row[:, None] * VOCABULARY + token[None, :], share, mask=mask)


def _settings(hidden, head):
    return {"VOCABULARY": head.shape[0], **tiles.loss(head.shape[0], hidden.dtype)}


@triton_op("hybridna::cross_entropy", mutates_args={})
def forward(hidden: torch.Tensor, head: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the log-sum-exp of each row. hidden (rows, width), head contiguous"""
    rows, width = hidden.shape
    loss, spread = (torch.empty(rows, dtype=torch.float32, device=hidden.device) for _ in range(2))
    options = _settings(hidden, head)
    with setting.launch_on(hidden):
        wrap_triton(loss_kernel)[(-(-rows // options["ROWS"]),)](
            hidden, head, target, loss, spread, rows, width, hidden.stride(0), **options
        )
    return loss, spread


@triton_op("hybridna::cross_entropy_backward", mutates_args={})
def backward(
    hidden: torch.Tensor, head: torch.Tensor, target: torch.Tensor, spread: torch.Tensor, dloss: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of the logits."""
    rows, width = hidden.shape
    dlogits = torch.empty(rows, head.shape[0], dtype=torch.float32, device=hidden.device)
    options = _settings(hidden, head)
    with setting.launch_on(hidden):
        wrap_triton(loss_backward_kernel)[(-(-rows // options["ROWS"]),)](
            hidden, head, target, spread, dloss, dlogits, rows, width, hidden.stride(0), **options
        )
    return dlogits


class Loss(Function):
    """cross_entropy. The logits' gradients are written, a dozen numbers a row; two matrix products do the rest."""

    @staticmethod
    def forward(ctx, hidden, head, target):
        hidden, head, target = setting.dense(hidden), head.contiguous(), target.contiguous()
        loss, spread = forward(hidden, head, target)
        ctx.save_for_backward(hidden, head, target, spread)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        hidden, head, target, spread = ctx.saved_tensors
        dlogits = backward(hidden, head, target, spread, dloss.contiguous())
        return dlogits.to(head.dtype) @ head, (dlogits.to(hidden.dtype).t() @ hidden).to(head.dtype), None


def cross_entropy(hidden, head, target):
    """Return the loss of each row in nats; see `hybridna_kernels.triton.cross_entropy`."""
    return Loss.apply(hidden, head, target)
