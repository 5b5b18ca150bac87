"""What the network carries between calls.

ModelState.start -> model(tokens, state) -> repeat | select | gather | snapshot -> model(more tokens, state)
"""

from typing import NamedTuple

import torch

from hybridna_kernels.reference import accumulation_dtype


class MambaState(NamedTuple):
    """Mamba-2 layer: last inputs of the convolution and the recurrent state.

    conv  (batch, conv_kernel - 1, channels)
    ssm   (batch, heads, head_dim, state_size), float32 or float64; of any number of rows where `rows` says whose
    rows  (batch,) int64, the row of `ssm` that is each row's; None: its own

    Beams choose their parents at every token: the next token reads each parent's state where it lies.
    """

    conv: torch.Tensor
    ssm: torch.Tensor
    rows: torch.Tensor | None = None

    def gather(self):
        """Return the recurrent state of each row, (batch, heads, head_dim, state_size)."""
        return self.ssm if self.rows is None else self.ssm.index_select(0, self.rows)


class AttentionState(NamedTuple):
    """Attention layer: keys and values read so far.

    keys, values                (batch, length, kv_heads, head_dim)
    shared_keys, shared_values  (1, prefix, kv_heads, head_dim) or None, read before and common to all rows
    """

    keys: torch.Tensor
    values: torch.Tensor
    shared_keys: torch.Tensor | None = None
    shared_values: torch.Tensor | None = None


class FixedAttentionState(NamedTuple):
    """Attention layer whose keys and values stay where they are, for one-token steps that are recorded once.

    keys, values                (batch, room, kv_heads, head_dim), written in place, finite also where nothing was read
    length                      () int64, tokens read; the next one goes there
    parents                     (batch,) int64, whose keys each row goes on from, or None: its own
    shared_keys, shared_values  as in AttentionState
    """

    keys: torch.Tensor
    values: torch.Tensor
    length: torch.Tensor
    parents: torch.Tensor | None = None
    shared_keys: torch.Tensor | None = None
    shared_values: torch.Tensor | None = None

    def attend(self, q, k, v):
        """Keep one token's keys and values, and attend to all that were read. q, k, v as `attention` takes them, n 1"""
        for kept, new in ((self.keys, k), (self.values, v)):
            if self.parents is not None:
                kept.copy_(kept.index_select(0, self.parents))
            kept.index_copy_(1, self.length[None], new)
        batch, _, heads, head_dim = q.shape
        kv_heads = k.shape[2]
        queries = (q * head_dim**-0.5).reshape(batch, kv_heads, heads // kv_heads, head_dim)
        unread = torch.arange(self.keys.shape[1], device=q.device) > self.length
        scores = torch.matmul(queries, self.keys.permute(0, 2, 3, 1)).to(accumulation_dtype(q))
        scores = scores.masked_fill(unread, float("-inf"))
        shared = 0 if self.shared_keys is None else self.shared_keys.shape[1]
        if shared:
            common = torch.einsum("bgqd,pgd->bgqp", queries, self.shared_keys[0]).to(scores.dtype)
            scores = torch.cat([common, scores], dim=-1)
        weights = torch.softmax(scores, dim=-1).to(q.dtype)
        out = torch.matmul(weights[..., shared:], self.values.transpose(1, 2))
        if shared:
            out = out + torch.einsum("bgqp,pgd->bgqd", weights[..., :shared], self.shared_values[0])
        return out.reshape(batch, 1, heads, head_dim)


class ModelState(NamedTuple):
    """One state per layer, and how many tokens have been read."""

    layers: tuple
    length: int

    @classmethod
    def start(cls, config, batch, device=None, dtype=torch.float32):
        """Return the state before the first token."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        layers = []
        for kind in config.layer_types:
            if kind == "attention":
                empty = torch.zeros(batch, 0, config.num_key_value_heads, config.head_dim, device=device, dtype=dtype)
                layers.append(AttentionState(empty, empty))
            else:
                conv = torch.zeros(batch, config.mamba_d_conv - 1, config.conv_width, device=device, dtype=dtype)
                shape = batch, config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state
                layers.append(MambaState(conv, torch.zeros(shape, device=device, dtype=exact)))
        return cls(tuple(layers), 0)

    @property
    def batch(self):
        return self.layers[0][0].shape[0]

    def repeat(self, n):
        """Give each row n times, adjacent; the keys of a single row are stored once and shared."""
        return ModelState(tuple(_repeat(layer, n) for layer in self.layers), self.length)

    def select(self, rows):
        """Keep the given rows, in that order, repeats allowed. rows (n,) int64"""
        return ModelState(tuple(_select(layer, rows) for layer in self.layers), self.length)

    @classmethod
    def gather(cls, parts):
        """Keep the given rows of several states of one length, one after the other. parts: list of (state, rows)"""
        if len(parts) == 1:
            return parts[0][0].select(parts[0][1])
        layers = []
        for i, first in enumerate(parts[0][0].layers):
            pieces = [_select(state.layers[i], rows) for state, rows in parts]
            if isinstance(first, MambaState):
                joined = torch.cat([piece.conv for piece in pieces]), torch.cat([piece.gather() for piece in pieces])
                layers.append(MambaState(*joined))
            else:
                keys, values = (torch.cat([piece[j] for piece in pieces]) for j in (0, 1))
                layers.append(first._replace(keys=keys, values=values))
        return cls(tuple(layers), parts[0][0].length)

    def snapshot(self):
        """Return a state that later steps cannot change: Mamba states copied, keys and values as they are.

        Keys and values only ever grow into new tensors, so for them the snapshot is free.
        """
        copied = [
            MambaState(layer.conv.clone(), layer.gather().clone()) if isinstance(layer, MambaState) else layer
            for layer in self.layers
        ]
        return ModelState(tuple(copied), self.length)

    def within(self, later):
        """Return the same state, its shared keys and values as views of a later state's, which go on from them."""
        layers = [
            old
            if isinstance(old, MambaState) or old.shared_keys is None
            else old._replace(
                shared_keys=new.shared_keys[:, : old.shared_keys.shape[1]],
                shared_values=new.shared_values[:, : old.shared_values.shape[1]],
            )
            for old, new in zip(self.layers, later.layers, strict=True)
        ]
        return ModelState(tuple(layers), self.length)

    @property
    def nbytes(self):
        """Bytes that the state holds."""
        return sum(t.nbytes for layer in self.layers for t in layer if t is not None)


def bytes_per_row(config, length, item_bytes=4):
    """Return the bytes of one row's state after `length` tokens, nothing shared."""
    ssm = 4 * config.mamba_n_heads * config.mamba_d_head * config.mamba_d_state
    conv = item_bytes * (config.mamba_d_conv - 1) * config.conv_width
    keys = 2 * item_bytes * length * config.num_key_value_heads * config.head_dim
    return sum(keys if kind == "attention" else ssm + conv for kind in config.layer_types)


def _repeat(layer, n):
    if n == 1 and (isinstance(layer, MambaState) or layer.keys.shape[0] > 1):
        return layer
    if isinstance(layer, MambaState):
        return _select(layer, torch.arange(layer.conv.shape[0], device=layer.conv.device).repeat_interleave(n))
    if layer.keys.shape[0] > 1:
        keys, values = (t.repeat_interleave(n, dim=0) for t in layer[:2])
        return layer._replace(keys=keys, values=values)
    if layer.shared_keys is None:
        shared = layer.keys, layer.values
    else:
        shared = (torch.cat(pair, dim=1) for pair in zip(layer[2:], layer[:2], strict=True))
    own = (t[:, :0].expand(n, -1, -1, -1) for t in layer[:2])
    return AttentionState(*own, *shared)


def _select(layer, rows):
    if isinstance(layer, MambaState):
        return MambaState(layer.conv.index_select(0, rows), layer.ssm, rows if layer.rows is None else layer.rows[rows])
    keys, values = (t.index_select(0, rows) for t in layer[:2])
    return layer._replace(keys=keys, values=values)
