"""The passes over rows of channels: causal convolution with SiLU, gated norm, norm of a sum; forward and backward.

tile of (tokens, channels), or one row -> float32 -> result in the dtype of the input; sums of weights in parts
"""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from hybridna_kernels.triton import setting, tiles


@triton.jit
def conv_sum(
    x, weight, bias, state, at, channel, real, length, channels, x_token,
    WIDTH: tl.constexpr, BIAS: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """Return the convolution before its SiLU at tokens `at`, zero outside the sequence. x, state point at one row."""
    inside = (at[:, None] >= 0) & (at[:, None] < length) & real[None, :]
    total = tl.zeros([at.shape[0], channel.shape[0]], tl.float32)
    if BIAS:
        total += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(WIDTH):
        source = at + (k - (WIDTH - 1))
        here = inside & (source[:, None] >= 0)
        value = tl.load(x + source[:, None] * x_token + channel[None, :], mask=here, other=0.0).to(tl.float32)
        if STATE:
            older = inside & (source[:, None] < 0)
            place = state + (source[:, None] + (WIDTH - 1)) * channels + channel[None, :]
            value += tl.load(place, mask=older, other=0.0).to(tl.float32)
        total += value * tl.load(weight + channel * WIDTH + k, mask=real, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit(do_not_specialize=["length"])
def conv_kernel(
    x, weight, bias, state, y, length, channels, x_batch, x_token,
    WIDTH: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BIAS: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < channels
    x += batch * x_batch
    if STATE:
        state += batch * (WIDTH - 1) * channels
    total = conv_sum(x, weight, bias, state, at, channel, real, length, channels, x_token, WIDTH, BIAS, STATE)
    place = y + (batch * length + at[:, None]) * channels + channel[None, :]
    inside = (at[:, None] < length) & real[None, :]
    tl.store(place, (total * tl.sigmoid(total)).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length"])
def conv_backward_kernel(
    x, weight, bias, state, dy, dx, dstate, sums, length, channels, x_batch, x_token,
    WIDTH: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
    BIAS: tl.constexpr, STATE: tl.constexpr, DSTATE: tl.constexpr,
):  # fmt: skip
    """Write dx (and dstate) of one tile, whose first WIDTH - 1 tokens of the sequence are those of the state.

    sums  (batch, tiles, WIDTH + 1, channels), what each tile adds to the gradients of the weights and the bias
    The convolution is computed anew for each tap, which costs loads from the cache and no memory.
    """
    batch = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1).to(tl.int64)
    at = tile * TOKENS + tl.arange(0, TOKENS) - (WIDTH - 1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < channels
    x += batch * x_batch
    dy += batch * length * channels
    if STATE:
        state += batch * (WIDTH - 1) * channels
    sums += (batch * tl.num_programs(1) + tile) * (WIDTH + 1) * channels
    own = (at[:, None] >= 0) & (at[:, None] < length) & real[None, :]
    value = tl.load(x + at[:, None] * x_token + channel[None, :], mask=own, other=0.0).to(tl.float32)
    older = (at[:, None] < 0) & real[None, :]
    if STATE:
        value += tl.load(state + (at[:, None] + (WIDTH - 1)) * channels + channel[None, :], mask=older, other=0.0).to(
            tl.float32
        )
    gradient = tl.zeros([TOKENS, CHANNELS], tl.float32)
    for k in tl.static_range(WIDTH):
        # This input met weight k when the output `later` was made.
        later = at + (WIDTH - 1 - k)
        total = conv_sum(x, weight, bias, state, later, channel, real, length, channels, x_token, WIDTH, BIAS, STATE)
        inside = (later[:, None] >= 0) & (later[:, None] < length) & real[None, :]
        out = tl.load(dy + later[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(total)
        out *= share * (1 + total * (1 - share))
        gradient += out * tl.load(weight + channel * WIDTH + k, mask=real, other=0.0).to(tl.float32)[None, :]
        tl.store(sums + k * channels + channel, tl.sum(out * value, axis=0), mask=real)
        if k == WIDTH - 1:
            tl.store(sums + WIDTH * channels + channel, tl.sum(out, axis=0), mask=real)
    place = dx + (batch * length + at[:, None]) * channels + channel[None, :]
    tl.store(place, gradient.to(dx.dtype.element_ty), mask=own)
    if DSTATE:
        place = dstate + (batch * (WIDTH - 1) + at[:, None] + (WIDTH - 1)) * channels + channel[None, :]
        tl.store(place, gradient.to(dstate.dtype.element_ty), mask=older)


@triton.jit
def norm_kernel(
    x, more, weight, added, out, width, x_row, more_row, eps,
    BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Scale one row to unit mean square. MODE "gate": of x silu(more); "add": of x + more, also kept; "plain": of x"""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    real = column < width
    value = tl.load(x + row * x_row + column, mask=real, other=0.0).to(tl.float32)
    if MODE != "plain":
        other = tl.load(more + row * more_row + column, mask=real, other=0.0).to(tl.float32)
        if MODE == "gate":
            value *= other * tl.sigmoid(other)
        else:
            # The norm is that of the sum as it is kept.
            value = (value + other).to(added.dtype.element_ty)
            tl.store(added + row * width + column, value, mask=real)
            value = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    scaled = value * scale * tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, scaled.to(out.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["rows"])
def norm_backward_kernel(
    x, more, weight, dout, dadded, dx, dmore, sums, rows, width, x_row, more_row, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, GATE: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Write the gradients of ROWS rows, and what they add to that of the weight. sums (programs, width)

    GATE   the value is x silu(more), else x
    ADDED  add the gradient that reaches the sum itself
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.arange(0, BLOCK)
    real = column < width
    gain = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(0, tl.minimum(ROWS, rows - first).to(tl.int32)):
        row = first + i
        inner = tl.load(x + row * x_row + column, mask=real, other=0.0).to(tl.float32)
        value = inner
        if GATE:
            gate = tl.load(more + row * more_row + column, mask=real, other=0.0).to(tl.float32)
            share = tl.sigmoid(gate)
            value = inner * gate * share
        out = tl.load(dout + row * width + column, mask=real, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
        total += out * value * scale
        out *= gain
        shift = tl.sum(out * value, axis=0) / width * scale * scale
        back = scale * (out - value * shift)
        if ADDED:
            back += tl.load(dadded + row * width + column, mask=real, other=0.0).to(tl.float32)
        if GATE:
            place = dmore + row * width + column
            slope = share * (1 + gate * (1 - share))
            tl.store(place, (back * inner * slope).to(dmore.dtype.element_ty), mask=real)
            back *= gate * share
        tl.store(dx + row * width + column, back.to(dx.dtype.element_ty), mask=real)
    tl.store(sums + tl.program_id(0).to(tl.int64) * width + column, total, mask=real)


@triton_op("hybridna::causal_conv1d", mutates_args={})
def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, state: torch.Tensor | None
) -> torch.Tensor:
    """Return the outputs of causal_conv1d, without autograd. weight, bias and state contiguous"""
    batch, length, channels = x.shape
    (tokens, block), options = tiles.convolution()
    y = torch.empty(batch, length, channels, dtype=x.dtype, device=x.device)
    with setting.launch_on(x):
        wrap_triton(conv_kernel)[(batch, -(-length // tokens), -(-channels // block))](
            x, weight, bias, state, y, length, channels, *x.stride()[:2],
            WIDTH=weight.shape[1], TOKENS=tokens, CHANNELS=block, BIAS=bias is not None, STATE=state is not None,
            **options,
        )  # fmt: skip
    return y


@triton_op("hybridna::causal_conv1d_backward", mutates_args={})
def convolution_backward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, state: torch.Tensor | None, dy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, of the state, and (width + 1, channels) of the taps and the bias."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    (tokens, block), options = tiles.convolution()
    covered = -(-(length + width - 1) // tokens)
    dx = torch.empty(batch, length, channels, dtype=x.dtype, device=x.device)
    dstate = torch.empty(batch, width - 1, channels, dtype=x.dtype, device=x.device)
    sums = torch.empty(batch, covered, width + 1, channels, dtype=torch.float32, device=x.device)
    with setting.launch_on(x):
        wrap_triton(conv_backward_kernel)[(batch, covered, -(-channels // block))](
            x, weight, bias, state, dy, dx, dstate, sums, length, channels, *x.stride()[:2],
            WIDTH=width, TOKENS=tokens, CHANNELS=block, BIAS=bias is not None, STATE=state is not None,
            DSTATE=width > 1, **options,
        )  # fmt: skip
    return dx, dstate, sums.sum((0, 1))


@triton_op("hybridna::norm", mutates_args={})
def norm(
    x: torch.Tensor, more: torch.Tensor | None, weight: torch.Tensor, eps: float, mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm the rows of x (rows, width); mode as in `norm_kernel`; return the sum (empty unless "add") and the norm."""
    rows, width = x.shape
    block, options = tiles.norm(width, x.dtype)
    added = torch.empty(rows if mode == "add" else 0, width, dtype=x.dtype, device=x.device)
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    with setting.launch_on(x):
        wrap_triton(norm_kernel)[(rows,)](
            x, more, weight, added, out, width, x.stride(0), 0 if more is None else more.stride(0), eps,
            BLOCK=block, MODE=mode, **options,
        )  # fmt: skip
    return added, out


@triton_op("hybridna::norm_backward", mutates_args={})
def norm_backward(
    x: torch.Tensor, gate: torch.Tensor | None, weight: torch.Tensor, dout: torch.Tensor,
    dadded: torch.Tensor | None, eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the gradients of x, of the gate (empty if None) and of the weight. x, gate, dout, dadded (rows, width)"""
    rows, width = x.shape
    block, options = tiles.norm(width, x.dtype)
    programs = -(-rows // tiles.NORM_ROWS)
    dx = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    dgate = torch.empty(rows if gate is not None else 0, width, dtype=x.dtype, device=x.device)
    sums = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    with setting.launch_on(x):
        wrap_triton(norm_backward_kernel)[(programs,)](
            x, gate, weight, dout, dadded, dx, dgate, sums, rows, width, x.stride(0),
            0 if gate is None else gate.stride(0), eps,
            ROWS=tiles.NORM_ROWS, BLOCK=block, GATE=gate is not None, ADDED=dadded is not None, **options,
        )  # fmt: skip
    return dx, dgate, sums.sum(0)
