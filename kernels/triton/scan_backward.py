"""Gradients of the Mamba-2 recurrence, without atomics.

inputs -> states before each tile (scan.py, anew); dy, C -> gradients of the state after each tile
-> per tile and group, head by head: what comes across its borders, then what happens inside it
dB and dC are summed over the heads of a group in registers, so that none of a single head is ever written.
"""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from hybridna_kernels.triton import scan, setting, tiles


@triton.jit(do_not_specialize=["length", "segment_length", "segments", "dt_batch"])
def state_gradient_kernel(
    dt, A, C, dy, dlast, parts, totals, dstate, dkept,
    length, heads, per_group, segment_length, segments, dt_batch, dt_token, dt_head, c_batch, c_token, c_group,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, TOKENS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, CARRY: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Pass the gradient of the state back through one segment of one head.

    CARRY  False: from zeros, writing `parts` and `totals` of the segment;
           True: from `dlast` (zeros unless LAST) and the parts of the segments after, writing `dkept`, the gradient of
           the state after each tile, and `dstate`
    """
    pair = tl.program_id(0).to(tl.int64)
    # Without CARRY the first segment is left out: none comes before it.
    segment = tl.program_id(1).to(tl.int64) + (0 if CARRY else 1)
    batch, head = pair // heads, pair % heads
    token, n = tl.arange(0, TOKENS), tl.arange(0, BLOCK_N)
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    wide, deep = p < P, n < N
    cell = p[None, :] * N + n[:, None]
    inside = wide[None, :] & deep[:, None]

    rate = tl.load(A + head).to(tl.float32) * 1.4426950408889634
    gradient = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    if LAST:
        gradient += tl.load(dlast + pair * P * N + cell, mask=inside, other=0.0).to(tl.float32)
    if CARRY:
        for back in range(0, (segments - 1 - segment).to(tl.int32)):
            at = pair * segments + segments - 1 - back
            part = tl.load(parts + at * P * N + cell, mask=inside, other=0.0)
            gradient = gradient * tl.exp2(tl.load(totals + at)) + part
    start = segment * segment_length
    end = tl.minimum(start + segment_length, length.to(tl.int64))
    dt += batch * dt_batch + head * dt_head
    C += batch * c_batch + (head // per_group) * c_group
    dy += (batch * length * heads + head) * P
    count = tl.cdiv(end - start, TOKENS)
    if CARRY:
        dkept += (pair * tl.cdiv(length, TOKENS) + start // TOKENS + count) * P * N
    written = tl.zeros([], tl.float32)

    for back in range(0, count.to(tl.int32)):
        at = start + (count - 1 - back) * TOKENS
        real = at + token < end
        row_wide, row_deep = real[:, None], real[:, None]
        if P % BLOCK_P:
            row_wide = row_wide & wide[None, :]
        if N % BLOCK_N:
            row_deep = row_deep & deep[None, :]
        if CARRY:
            dkept -= P * N
            tl.store(dkept + cell, gradient.to(dkept.dtype.element_ty), mask=inside)
        step = tl.load(dt + at * dt_token + token * dt_token, mask=real, other=0.0).to(tl.float32)
        log_decay = tl.cumsum(step * rate, axis=0)
        total = tl.sum(step * rate, axis=0)
        queries = tl.load(C + at * c_token + token[:, None] * c_token + n[None, :], mask=row_deep, other=0.0)
        out = tl.load(dy + at * heads * P + token[:, None] * (heads * P) + p[None, :], mask=row_wide, other=0.0)
        out = (out.to(tl.float32) * tl.exp2(log_decay)[:, None]).to(OPERAND)
        gradient = tl.dot(tl.trans(queries.to(OPERAND)), out, gradient * tl.exp2(total), input_precision=PRECISION)
        written += total

    if CARRY:
        if segment == 0:
            tl.store(dstate + pair * P * N + cell, gradient, mask=inside)
    else:
        at = pair * segments + segment
        tl.store(parts + at * P * N + cell, gradient, mask=inside)
        tl.store(totals + at, written)


@triton.jit(do_not_specialize=["length", "dt_batch"])
def across_kernel(
    x, dt, A, B, C, D, kept, dkept, dy, dx_part, slope_part, direct_part, leaving, dB_part, dC_part, dD,
    length, heads, groups, per_group,
    x_batch, x_token, x_head, dt_batch, dt_token, dt_head, b_batch, b_token, b_group, c_batch, c_token, c_group,
    OUT: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, TOKENS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what the state after one tile of tokens (OUT) or before it adds to its gradients, for one group of heads.

    kept, dkept    (batch, heads, tiles, P, N)  state before the tile, gradient of the state after it
    dx_part        (batch, length, heads, P)    with the part of D
    slope_part     (batch, length, heads)       gradient of the sum of steps up to each token, times A
    direct_part    (batch, length, heads)       gradient of each step where it weighs its own input
    leaving, dD    (batch, tiles, heads)        gradient of the sum of all steps, times A; share of that of D
    dB_part        (batch, length, groups, N)    these all with OUT, slope_part and dC_part without
    """
    tile = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    batch, group = row // groups, row % groups
    count = tl.num_programs(0)
    at = tile * TOKENS
    token, p, n = tl.arange(0, TOKENS), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    wide, deep, real = p < P, n < N, at + token < length
    row_wide, row_deep = real[:, None], real[:, None]
    if P % BLOCK_P:
        row_wide = row_wide & wide[None, :]
    if N % BLOCK_N:
        row_deep = row_deep & deep[None, :]
    cell, inside = p[:, None] * N + n[None, :], wide[:, None] & deep[None, :]
    B += batch * b_batch + group * b_group + at * b_token
    C += batch * c_batch + group * c_group + at * c_token
    if OUT:
        mine = tl.load(B + token[:, None] * b_token + n[None, :], mask=row_deep, other=0.0).to(OPERAND)
    else:
        mine = tl.load(C + token[:, None] * c_token + n[None, :], mask=row_deep, other=0.0).to(OPERAND)
    gradient = tl.zeros([TOKENS, BLOCK_N], tl.float32)

    for i in range(0, per_group):
        head = group * per_group + i
        rate = tl.load(A + head).to(tl.float32) * 1.4426950408889634
        step = tl.load(dt + batch * dt_batch + head * dt_head + (at + token) * dt_token, mask=real, other=0.0)
        step = step.to(tl.float32)
        log_decay = tl.cumsum(step * rate, axis=0)
        place = ((batch * length + at) * heads + head) * P + token[:, None] * (heads * P) + p[None, :]
        out = tl.load(dy + place, mask=row_wide, other=0.0)
        at_state = ((batch * heads + head) * count + tile) * P * N + cell
        at_step = (batch * length + at) * heads + head + token * heads
        before = tl.load(kept + at_state, mask=inside, other=0.0)
        if OUT:
            after = tl.load(dkept + at_state, mask=inside, other=0.0)
            total = tl.sum(step * rate, axis=0)
            gone = tl.sum(tl.sum(before.to(tl.float32) * after.to(tl.float32), axis=1), axis=0) * tl.exp2(total)
            after = after.to(OPERAND)
            rest = tl.exp2(total - log_decay)
            back = tl.dot(mine, tl.trans(after), input_precision=PRECISION) * (rest * step)[:, None]
            back += tl.load(D + head).to(tl.float32) * out.to(tl.float32)
            tl.store(dx_part + place, back, mask=row_wide)
            source = x + batch * x_batch + head * x_head + at * x_token
            inputs = tl.load(source + token[:, None] * x_token + p[None, :], mask=row_wide, other=0.0)
            at_tile = (batch * count + tile) * heads + head
            tl.store(dD + at_tile, tl.sum(tl.sum(inputs.to(tl.float32) * out.to(tl.float32), axis=1), axis=0))
            outgoing = tl.dot(inputs.to(OPERAND), after, input_precision=PRECISION) * rest[:, None]
            gradient += outgoing * step[:, None]
            direct = tl.sum(outgoing * mine.to(tl.float32), axis=1)
            tl.store(direct_part + at_step, direct, mask=real)
            tl.store(leaving + at_tile, gone + tl.sum(direct * step, axis=0))
        else:
            incoming = tl.dot(out.to(OPERAND), before.to(OPERAND), input_precision=PRECISION)
            incoming *= tl.exp2(log_decay)[:, None]
            gradient += incoming
            tl.store(slope_part + at_step, tl.sum(incoming * mine.to(tl.float32), axis=1), mask=real)

    place = ((batch * length + at) * groups + group) * N + token[:, None] * (groups * N) + n[None, :]
    tl.store((dB_part if OUT else dC_part) + place, gradient, mask=row_deep)


@triton.jit(do_not_specialize=["length", "dt_batch"])
def inside_kernel(
    x, dt, A, B, C, dy, dx_part, slope_part, direct_part, leaving, dB_part, dC_part, dx, ddt, dA, dB, dC,
    length, heads, groups, per_group,
    x_batch, x_token, x_head, dt_batch, dt_token, dt_head, b_batch, b_token, b_group, c_batch, c_token, c_group,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, TOKENS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the tokens of one tile do to one another, and write the gradients; squares are [source, later token].

    dA  (batch, tiles, heads), what the tile adds; the parts as in `across_kernel`
    """
    tile = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    batch, group = row // groups, row % groups
    at = tile * TOKENS
    token, p, n = tl.arange(0, TOKENS), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    wide, deep, real = p < P, n < N, at + token < length
    row_wide, row_deep = real[:, None], real[:, None]
    if P % BLOCK_P:
        row_wide = row_wide & wide[None, :]
    if N % BLOCK_N:
        row_deep = row_deep & deep[None, :]
    B += batch * b_batch + group * b_group + at * b_token
    C += batch * c_batch + group * c_group + at * c_token
    keys = tl.load(B + token[:, None] * b_token + n[None, :], mask=row_deep, other=0.0).to(OPERAND)
    queries = tl.load(C + token[:, None] * c_token + n[None, :], mask=row_deep, other=0.0).to(OPERAND)
    scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
    causal = token[:, None] <= token[None, :]
    by_score = tl.zeros([TOKENS, TOKENS], tl.float32)

    for i in range(0, per_group):
        head = group * per_group + i
        rate = tl.load(A + head).to(tl.float32)
        step = tl.load(dt + batch * dt_batch + head * dt_head + (at + token) * dt_token, mask=real, other=0.0)
        step = step.to(tl.float32)
        log_decay = tl.cumsum(step * (rate * 1.4426950408889634), axis=0)
        source = x + batch * x_batch + head * x_head + at * x_token
        inputs = tl.load(source + token[:, None] * x_token + p[None, :], mask=row_wide, other=0.0)
        place = ((batch * length + at) * heads + head) * P + token[:, None] * (heads * P) + p[None, :]
        out = tl.load(dy + place, mask=row_wide, other=0.0).to(OPERAND)
        decay = tl.exp2(tl.where(causal, log_decay[None, :] - log_decay[:, None], float("-inf")))
        pull = tl.dot(inputs.to(OPERAND), tl.trans(out), input_precision=PRECISION) * decay
        by_score += pull * step[:, None]
        pull *= scores
        slope = tl.sum(pull * step[:, None], axis=0)
        direct = tl.sum(pull, axis=1)
        back = tl.dot((scores * decay).to(OPERAND), out, input_precision=PRECISION) * step[:, None]
        back += tl.load(dx_part + place, mask=row_wide, other=0.0)
        tl.store(dx + place, back.to(dx.dtype.element_ty), mask=row_wide)
        place = (batch * length + at) * heads + head + token * heads
        direct += tl.load(direct_part + place, mask=real, other=0.0)
        slope += tl.load(slope_part + place, mask=real, other=0.0) - direct * step
        at_tile = (batch * tl.num_programs(0) + tile) * heads + head
        # The log decay of a token is the sum of all steps up to it.
        slope = tl.cumsum(slope, axis=0, reverse=True) + tl.load(leaving + at_tile)
        tl.store(ddt + place, direct + slope * rate, mask=real)
        tl.store(dA + at_tile, tl.sum(slope * step, axis=0))

    by_score = by_score.to(OPERAND)
    place = ((batch * length + at) * groups + group) * N + token[:, None] * (groups * N) + n[None, :]
    by_key = tl.load(dB_part + place, mask=row_deep, other=0.0)
    by_key = tl.dot(by_score, queries, by_key, input_precision=PRECISION)
    tl.store(dB + place, by_key.to(dB.dtype.element_ty), mask=row_deep)
    by_query = tl.load(dC_part + place, mask=row_deep, other=0.0)
    by_query = tl.dot(tl.trans(by_score), keys, by_query, input_precision=PRECISION)
    tl.store(dC + place, by_query.to(dC.dtype.element_ty), mask=row_deep)


@triton_op("hybridna::ssd_scan_backward", mutates_args={})
def scan_backward(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor,
    state: torch.Tensor | None, dy: torch.Tensor, dlast: torch.Tensor | None,
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:  # fmt: skip
    """Return the gradients of x, dt, A, B, C, D and the first state. dy, dlast contiguous"""
    batch, length, heads, P = x.shape
    groups, N = B.shape[2:]
    A, D = A.contiguous(), D.contiguous()
    tile, cut = tiles.scan(P, N, x.dtype), tiles.tile_gradient(P, N, x.dtype)
    # States are kept as the last kernel reads them.
    tile = tile._replace(tokens=cut.tokens)
    count = -(-length // tile.tokens)

    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device=x.device)

    kept, dkept = (empty(batch, heads, count, P, N, dtype=x.dtype) for _ in range(2))
    scan.launch(x, dt, A, B, C, D, state, (None, None, kept), tile, keep=True)
    number, segment = scan.segments(x, tile.tokens)
    parts = empty(batch, heads, number, P, N) if number > 1 else None
    totals = empty(batch, heads, number) if number > 1 else None
    dstate = empty(batch, heads, P, N)
    dx, dx_part = empty(*x.shape, dtype=x.dtype), empty(*x.shape)
    ddt, slope_part, direct_part = (empty(batch, length, heads) for _ in range(3))
    dB, dC = (empty(batch, length, groups, N, dtype=x.dtype) for _ in range(2))
    dB_part, dC_part = (empty(batch, length, groups, N) for _ in range(2))
    dA, dD, leaving = (empty(batch, count, heads) for _ in range(3))
    with setting.launch_on(x):
        for carry in (False, True) if number > 1 else (True,):
            wrap_triton(state_gradient_kernel)[(batch * heads, number if carry else number - 1, tile.parts(P))](
                dt, A, C, dy, dlast, parts, totals, dstate, dkept,
                length, heads, heads // groups, segment, number, *dt.stride(), *C.stride()[:3],
                P=P, N=N, **tile.blocks(P, N), CARRY=carry, LAST=carry and dlast is not None, **tile.options(),
            )  # fmt: skip
        shape = (
            length,
            heads,
            groups,
            heads // groups,
            *x.stride()[:3],
            *dt.stride(),
            *B.stride()[:3],
            *C.stride()[:3],
        )
        options = {"P": P, "N": N, **cut.blocks(P, N), **cut.options()}
        for out in (True, False):
            wrap_triton(across_kernel)[(count, batch * groups)](
                x, dt, A, B, C, D, kept, dkept, dy, dx_part, slope_part, direct_part, leaving, dB_part, dC_part, dD,
                *shape, OUT=out, **options,
            )  # fmt: skip
        wrap_triton(inside_kernel)[(count, batch * groups)](
            x, dt, A, B, C, dy, dx_part, slope_part, direct_part, leaving, dB_part, dC_part, dx, ddt, dA, dB, dC,
            *shape, **options,
        )  # fmt: skip
    return dx, ddt, dA.sum((0, 1)), dB, dC, dD.sum((0, 1)), dstate
