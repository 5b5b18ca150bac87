"""The Mamba-2 recurrence advanced by one token, each row from its parent's state where it lies.

state[rows] -> read once, decayed, added to, read out, written once -> y, new state
"""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from hybridna_kernels.triton import setting, tiles


@triton.jit
def step_kernel(
    x, dt, A, B, C, D, state, rows, y, after,
    heads, per_group, x_batch, x_head, dt_batch, dt_head, b_batch, b_group, c_batch, c_group,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Advance BLOCK_P channels of one head of one row."""
    batch = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    group = head // per_group
    p, n = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    wide, deep = p < P, n < N
    cell, inside = p[:, None] * N + n[None, :], wide[:, None] & deep[None, :]
    parent = tl.load(rows + batch).to(tl.int64) if ROWS else batch

    before = tl.load(state + (parent * heads + head) * P * N + cell, mask=inside, other=0.0).to(tl.float32)
    step = tl.load(dt + batch * dt_batch + head * dt_head).to(tl.float32)
    rate = tl.load(A + head).to(tl.float32) * 1.4426950408889634
    value = tl.load(x + batch * x_batch + head * x_head + p, mask=wide, other=0.0).to(tl.float32)
    key = tl.load(B + batch * b_batch + group * b_group + n, mask=deep, other=0.0).to(tl.float32)
    query = tl.load(C + batch * c_batch + group * c_group + n, mask=deep, other=0.0).to(tl.float32)
    now = before * tl.exp2(step * rate) + (step * value)[:, None] * key[None, :]
    out = tl.sum(now * query[None, :], axis=1) + tl.load(D + head).to(tl.float32) * value
    place = batch * heads + head
    tl.store(after + place * P * N + cell, now, mask=inside)
    tl.store(y + place * P + p, out.to(y.dtype.element_ty), mask=wide)


@triton_op("hybridna::ssd_step", mutates_args={})
def _step(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor,
    state: torch.Tensor, rows: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    batch, heads, P = x.shape
    groups, N = B.shape[1:]
    y = torch.empty(batch, heads, P, dtype=x.dtype, device=x.device)
    after = torch.empty(batch, heads, P, N, dtype=torch.float32, device=x.device)
    block, options = tiles.step(P, N)
    with setting.launch_on(x):
        wrap_triton(step_kernel)[(batch, heads, -(-P // block))](
            x, dt, A.contiguous(), B, C, D.contiguous(), state.contiguous(), rows, y, after,
            heads, heads // groups, *x.stride()[:2], *dt.stride(), *B.stride()[:2], *C.stride()[:2],
            P=P, N=N, BLOCK_P=block, BLOCK_N=triton.next_power_of_2(N), ROWS=rows is not None, **options,
        )  # fmt: skip
    return y, after


def ssd_step(x, dt, A, B, C, D, state, rows):
    """Advance the Mamba-2 recurrence by one token; shapes as in `reference.ssd_step`."""
    return _step(setting.dense(x), dt, A, setting.dense(B), setting.dense(C), D, state, rows)
