"""Whole blocks in one call: what fills the time of short passes is calling kernel after kernel.

a block's tensors -> laid out once for the library -> blocks, states -> what leaves the last one, and the states after
"""

import array
import ctypes
import functools
import struct
import threading
from typing import NamedTuple

import torch

from hybridna_kernels.cpu import build
from hybridna_kernels.cpu.call import address, contiguous, integer, threads
from hybridna_kernels.cpu.projection import LARGEST, LARGEST_TILED, is_fixed, make_panels, make_tile_panels, panels

# What the library's fixed buffers hold.
LARGEST_STATE_SIZE, LARGEST_CONV, LARGEST_HEAD = 512, 64, 256


class MambaBlock(NamedTuple):
    """Weights of a block `x + mixer(norm(x))`, then `x + mlp(norm(x))`, with a Mamba-2 mixer, and what goes with them.

    norm, mlp_norm  (hidden,), eps and mlp_eps with them
    in_proj         (width + channels + heads, hidden): the gate z; x, B and C; dt
    conv            (channels, 1, taps), conv_bias (channels,)
    dt_bias, A_log, D  (heads,)
    gated_norm      (width,), gated_eps with it
    out_proj        (hidden, width)
    gate, up        (inner, hidden)
    down            (hidden, inner)
    dt_range        least and most of dt, or None

    Its state is conv (batch, taps - 1, channels), ssm (batch, heads, head_dim, size) and rows: (batch,) int64 for a
    length of 1 alone, which row of an ssm of any number of rows each row goes on from; or None.
    """

    norm: torch.Tensor
    in_proj: torch.Tensor
    conv: torch.Tensor
    conv_bias: torch.Tensor
    dt_bias: torch.Tensor
    A_log: torch.Tensor
    D: torch.Tensor
    gated_norm: torch.Tensor
    out_proj: torch.Tensor
    mlp_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    eps: float
    gated_eps: float
    mlp_eps: float
    dt_range: tuple | None
    groups: int
    size: int

    @property
    def ops(self):
        """The ops that it stands for."""
        return "ssd_scan", "ssd_step", "causal_conv1d", "gated_rms_norm"

    @property
    def tensors(self):
        return self[:13]

    @property
    def products(self):
        """The weights of its products."""
        return self.in_proj, self.out_proj, self.gate, self.up, self.down

    def refuse(self):
        """Say why the library cannot take such a block, or None."""
        if self.size > LARGEST_STATE_SIZE or self.conv.shape[-1] > LARGEST_CONV:
            return "larger than the library's buffers"
        return "heads do not divide into groups" if self.D.numel() % self.groups else None

    def lay_out(self, slices):
        """Return the struct that block.cpp calls Mamba, and the tensors that it points to."""
        heads = self.D.numel()
        least, most = self.dt_range or (0.0, float("inf"))
        weights = self.conv, self.conv_bias, self.dt_bias, self.A_log, self.D, self.gated_norm
        return _lay_out([
            *_mlp(self, slices), self.norm, *_both(slices, self.in_proj), *weights, *_both(slices, self.out_proj),
            self.eps, self.gated_eps, float(least), float(most), self.norm.numel(), heads,
            self.gated_norm.numel() // heads, self.groups, self.size, self.conv.shape[-1],
        ])  # fmt: skip

    def begin(self, x, state):
        """Return the given tensors of a step, and those that take the state after it."""
        conv, ssm, rows = (contiguous(t) for t in state)
        after = torch.empty_like(conv), ssm.new_empty(x.shape[0], *ssm.shape[1:])
        return (conv, ssm, None, None), 0, 0, rows, after


class AttentionBlock(NamedTuple):
    """Weights of a block with causal grouped-query attention instead, and what goes with them.

    norm, mlp_norm  (hidden,), eps and mlp_eps with them
    q               (heads * head_dim, hidden)
    k, v            (kv_heads * head_dim, hidden)
    o               (hidden, heads * head_dim)
    gate, up        (inner, hidden)
    down            (hidden, inner)

    Its state is keys and values (batch, past, kv_heads, head_dim), and those that are common to all rows and lie before
    them, (1, prefix, kv_heads, head_dim) or None.
    """

    norm: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    mlp_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    eps: float
    mlp_eps: float
    heads: int
    kv_heads: int

    @property
    def ops(self):
        """The ops that it stands for, and the one that products go by."""
        return "attention", "gated_rms_norm"

    @property
    def tensors(self):
        return self[:9]

    @property
    def products(self):
        """The weights of its products."""
        return self.q, self.k, self.v, self.o, self.gate, self.up, self.down

    @property
    def head_dim(self):
        return self.q.shape[0] // self.heads

    def refuse(self):
        """Say why the library cannot take such a block, or None."""
        if self.head_dim % 2 or self.head_dim > LARGEST_HEAD:
            return f"head_dim odd or above {LARGEST_HEAD}"
        return None

    def lay_out(self, slices):
        """Return the struct that block.cpp calls Attention, and the tensors that it points to."""
        qkv = torch.cat([self.q.detach(), self.k.detach(), self.v.detach()])
        tiles = make_tile_panels(qkv, None, slices) if slices else None
        whole = make_panels(qkv) if self.q.numel() <= LARGEST else None
        return _lay_out([
            *_mlp(self, slices), self.norm, whole, tiles, slices, *_both(slices, self.o), self.eps,
            self.norm.numel(), self.heads, self.kv_heads, self.head_dim,
        ])  # fmt: skip

    def begin(self, x, state):
        """Return the given tensors of a step, and those that take the state after it."""
        keys, values, shared_keys, shared_values = (contiguous(t) for t in state)
        batch, past, *rest = keys.shape
        after = tuple(t.new_empty(batch, past + x.shape[1], *rest) for t in (keys, values))
        prefix = 0 if shared_keys is None else shared_keys.shape[1]
        return (keys, values, shared_keys, shared_values), past, prefix, None, after


def _both(slices, *weights):
    """Return a block.cpp Weight of one weight or two: panels unless it is large, and tiles where there are slices."""
    whole = panels(*weights) if weights[0].numel() <= LARGEST else None
    return whole, panels(*weights, slices=slices) if slices else None, slices


def _mlp(block, slices):
    """Return what block.cpp calls FeedForward."""
    both = _both(slices, block.gate, block.up), _both(slices, block.down)
    return block.mlp_norm, *both[0], *both[1], block.mlp_eps, block.gate.shape[0]


def _lay_out(fields):
    """Return fields of eight bytes, tensors as their addresses, and the tensors."""
    held = [contiguous(f.detach()) if isinstance(f, torch.Tensor) else f for f in fields]
    made = b"".join(
        struct.pack("@d", f) if isinstance(f, float)
        else struct.pack("@q", 0 if f is None else f if isinstance(f, int) else f.data_ptr())
        for f in held
    )  # fmt: skip
    return made, held


class LaidOut:
    """A block as the library reads it, laid out when it is first asked for.

    slices  of factors of its products on tiles, 0: all on vectors
    """

    def __init__(self, block, slices=0):
        self.block, self.slices, self._lock, self._made = block, slices, threading.Lock(), None

    @functools.cached_property
    def reason(self):
        """Why the library does not take the block, or None."""
        return _refuse(self.block, LARGEST_TILED if self.slices else LARGEST)

    @functools.cached_property
    def is_large(self):
        """Whether it reads single tokens no more: some weight is laid out for tiles alone."""
        return any(t.numel() > LARGEST for t in self.block.products)

    @property
    def address(self):
        """Where the block's struct lies."""
        # Several threads may ask at once, and what the first was given must not go.
        with self._lock:
            if self._made is None:
                struct_bytes, held = self.block.lay_out(self.slices)
                at = ctypes.cast(ctypes.c_char_p(struct_bytes), ctypes.c_void_p).value
                self._made = struct_bytes, held, at
        return self._made[2]


def _refuse(block, largest):
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in block.tensors):
        return "needs float32 on CPU"
    if any(not is_fixed(t) or t.numel() > largest for t in block.products):
        return "needs small weights that are not trained"
    return block.refuse() or build.library()[1]


class Kept:
    """A block laid out, until any of its weights changes. A copy begins empty: addresses mean nothing in it."""

    def __init__(self):
        self._kept = None, None

    def __reduce__(self):
        return Kept, ()

    def get(self, block, slices):
        """Return the LaidOut of a block and slices.

        A weight changed through `.data` keeps its version; torch gives no sign of such a change.
        """
        state = (
            [(t.data_ptr(), None if t.is_inference() else t._version, t.requires_grad, t.dtype) for t in block.tensors],
            block[len(block.tensors) :],
            slices,
        )
        kept, laid = self._kept
        if kept != state:
            laid = LaidOut(block, slices)
            self._kept = state, laid
        return laid


def read_blocks(x, states, blocks):
    """Read x through blocks one after the other; float32, without autograd.

    x        (batch, length, hidden)
    states   of each block as MambaBlock and AttentionBlock say
    blocks   list of LaidOut
    returns  what leaves the last block, and the list of (conv, ssm) or (keys, values) after each of them

    A row's results depend neither on the rows beside it nor on threads. Raises ValueError for states of another number
    of rows, and MemoryError.
    """
    batch, length, _ = x.shape
    x = contiguous(x)
    for state in states:
        # Mamba-2's second has any number of rows where the third says whose.
        counted = state[:1] if len(state) == 3 and state[2] is not None else state[:2]
        if any(t.shape[0] != batch for t in counted):
            raise ValueError(f"states of {state[0].shape[0]} rows for {batch} rows of tokens")
    steps, held, found = array.array("q"), [], []
    for laid, state in zip(blocks, states, strict=True):
        given, past, prefix, rows, after = laid.block.begin(x, state)
        held.append((given, rows))
        found.append(after)
        kind = int(isinstance(laid.block, AttentionBlock))
        at = [0 if t is None else t.data_ptr() for t in (*given, rows, *after)]
        steps.extend((kind, laid.address, *at[:4], past, prefix, *at[4:]))
    out = torch.empty_like(x)
    failed = build.library()[0].hybridna_read_blocks(
        ctypes.c_void_p(steps.buffer_info()[0]), integer(len(found)), address(x), address(out), integer(batch),
        integer(length), threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("not enough memory for a pass")
    return out, found
