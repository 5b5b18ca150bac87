"""The Mamba-2 recurrence over a sequence in one fused kernel.

x, dt, B, C in tiles of tokens -> scores, both terms of y, state carried in registers -> y, last state
"""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from hybridna_kernels.triton import setting, tiles

# Segments of a sequence are scanned side by side only if they are at least this long, in tokens.
SHORTEST_SEGMENT = 1024
MOST_SEGMENTS = 8


# Sequences come in every length: one kernel serves them all.
@triton.jit(do_not_specialize=["length", "segment_length", "segments", "dt_batch"])
def scan_kernel(
    x, dt, A, B, C, D, first, parts, totals, y, last, kept,
    length, heads, per_group, segment_length, segments,
    x_batch, x_token, x_head, dt_batch, dt_token, dt_head,
    b_batch, b_token, b_group, c_batch, c_token, c_group,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, TOKENS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    CARRY: tl.constexpr, FIRST: tl.constexpr, OUTPUT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Scan one segment of BLOCK_P channels of one head.

    CARRY   False: from zeros, writing `parts` (the state) and `totals` (log2 of the decay) of the segment;
            True: from `first` (zeros unless FIRST) and the parts of the segments before, writing the last state
    OUTPUT  write y
    KEEP    write `kept`, the state before each tile of tokens
    """
    pair = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1).to(tl.int64)
    batch, head = pair // heads, pair % heads
    group = head // per_group
    token, n = tl.arange(0, TOKENS), tl.arange(0, BLOCK_N)
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    wide, deep = p < P, n < N
    cell = p[None, :] * N + n[:, None]  # the state lies as (P, N) and is held as (N, P)
    inside = wide[None, :] & deep[:, None]

    rate = tl.load(A + head).to(tl.float32) * 1.4426950408889634
    skip = tl.load(D + head).to(tl.float32)
    state = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    if FIRST:
        state += tl.load(first + pair * P * N + cell, mask=inside, other=0.0).to(tl.float32)
    if CARRY:
        for earlier in range(0, segment.to(tl.int32)):
            at = pair * segments + earlier
            part = tl.load(parts + at * P * N + cell, mask=inside, other=0.0)
            state = state * tl.exp2(tl.load(totals + at)) + part

    start = segment * segment_length
    end = tl.minimum(start + segment_length, length.to(tl.int64))
    x += batch * x_batch + head * x_head
    dt += batch * dt_batch + head * dt_head
    B += batch * b_batch + group * b_group
    C += batch * c_batch + group * c_group
    if OUTPUT:
        y += (batch * length * heads + head) * P
    if KEEP:
        kept += (pair * tl.cdiv(length, TOKENS) + start // TOKENS) * P * N
    written = tl.zeros([], tl.float32)
    causal = token[:, None] >= token[None, :]

    for begin in range(0, (end - start).to(tl.int32), TOKENS):
        at = start + begin
        real = at + token < end
        row_wide, row_deep = real[:, None], real[:, None]
        # Masks that hold everywhere cost registers.
        if P % BLOCK_P:
            row_wide = row_wide & wide[None, :]
        if N % BLOCK_N:
            row_deep = row_deep & deep[None, :]
        if KEEP:
            tl.store(kept + cell, state.to(kept.dtype.element_ty), mask=inside)
            kept += P * N
        # A step of 0, as beyond the end, neither decays nor adds.
        step = tl.load(dt + at * dt_token + token * dt_token, mask=real, other=0.0).to(tl.float32)
        keys = tl.load(B + at * b_token + token[:, None] * b_token + n[None, :], mask=row_deep, other=0.0).to(OPERAND)
        log_decay = tl.cumsum(step * rate, axis=0)
        total = tl.sum(step * rate, axis=0)
        if OUTPUT:
            queries = tl.load(C + at * c_token + token[:, None] * c_token + n[None, :], mask=row_deep, other=0.0)
            queries = queries.to(OPERAND)
            out = tl.dot(queries, state.to(OPERAND), input_precision=PRECISION) * tl.exp2(log_decay)[:, None]
            scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            span = tl.where(causal, log_decay[:, None] - log_decay[None, :], float("-inf"))
            scores = scores * tl.exp2(span) * step[None, :]
        # Loaded after the scores: fewer registers are held at once.
        inputs = tl.load(x + at * x_token + token[:, None] * x_token + p[None, :], mask=row_wide, other=0.0)
        if OUTPUT:
            out = tl.dot(scores.to(OPERAND), inputs.to(OPERAND), out, input_precision=PRECISION)
            out += skip * inputs.to(tl.float32)
            place = y + at * heads * P + token[:, None] * (heads * P) + p[None, :]
            tl.store(place, out.to(y.dtype.element_ty), mask=row_wide)
        weighted = inputs.to(tl.float32) * (step * tl.exp2(total - log_decay))[:, None]
        state = tl.dot(tl.trans(keys), weighted.to(OPERAND), state * tl.exp2(total), input_precision=PRECISION)
        written += total

    if OUTPUT:  # noqa: SIM102 known when compiled, unlike the other
        if segment == segments - 1:
            tl.store(last + pair * P * N + cell, state, mask=inside)
    if not CARRY:
        at = pair * segments + segment
        tl.store(parts + at * P * N + cell, state, mask=inside)
        tl.store(totals + at, written)


def _segments(x, tokens):
    """Return how many segments to scan side by side, and their length, a multiple of the tile."""
    batch, length, heads, _ = x.shape
    idle = 2 * setting.processors(x) // (batch * heads)
    number = max(1, min(idle, MOST_SEGMENTS, length // SHORTEST_SEGMENT))
    segment = tokens * -(-length // (tokens * number))
    return -(-length // segment), segment


def launch(x, dt, A, B, C, D, state, outputs, tile, *, keep):
    """Scan with `outputs` (y, last, kept), each None where it is not wanted; in two passes if cut into segments."""
    batch, length, heads, P = x.shape
    groups, N = B.shape[2:]
    y, last, kept = outputs
    number, segment = segments(x, tile.tokens)
    parts = torch.empty(batch, heads, number, P, N, dtype=torch.float32, device=x.device) if number > 1 else None
    totals = torch.empty(batch, heads, number, dtype=torch.float32, device=x.device) if number > 1 else None
    with setting.launch_on(x):
        for carry in (False, True) if number > 1 else (True,):
            wrap_triton(scan_kernel)[(batch * heads, number if carry else number - 1, tile.parts(P))](
                x, dt, A.contiguous(), B, C, D.contiguous(), state, parts, totals, y, last, kept,
                length, heads, heads // groups, segment, number,
                *x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3],
                P=P, N=N, **tile.blocks(P, N), CARRY=carry, FIRST=carry and state is not None,
                OUTPUT=carry and not keep, KEEP=carry and keep, **tile.options(),
            )  # fmt: skip


def segments(x, tokens):
    """Return how many segments to scan side by side, and their length, a multiple of the tile."""
    batch, length, heads, _ = x.shape
    idle = 2 * setting.processors(x) // (batch * heads)
    number = max(1, min(idle, MOST_SEGMENTS, length // SHORTEST_SEGMENT))
    segment = tokens * -(-length // (tokens * number))
    return -(-length // segment), segment


@triton_op("hybridna::ssd_scan", mutates_args={})
def scan(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Run ssd_scan without autograd. x, B, C dense in their last dimension, state contiguous"""
    batch, length, heads, P = x.shape
    y = torch.empty(batch, length, heads, P, dtype=x.dtype, device=x.device)
    last = torch.empty(batch, heads, P, B.shape[-1], dtype=torch.float32, device=x.device)
    launch(x, dt, A, B, C, D, state, (y, last, None), tiles.scan(P, B.shape[-1], x.dtype), keep=False)
    return y, last
