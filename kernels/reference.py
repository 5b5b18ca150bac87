"""Plain torch definitions of the five ops, and of the block that is made of them.

ssd_scan_sequential is the truth for the recurrence; ssd_scan is the same sum in chunks, which runs without extras.
x, dt, B, C -> chunk states -> states passed on -> read-out + causal block -> y
"""

import torch
import torch.nn.functional as F

# Scores of one block of queries against all keys are the largest temporary of `attention`.
ATTENTION_SCORES_LIMIT = 2**21


def accumulation_dtype(x):
    """Dtype of sums: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def ssd_step(x, dt, A, B, C, D, state, *, rows=None):
    """Advance the Mamba-2 recurrence by one token; return its output and the new state.

    x      (batch, heads, head_dim)
    dt     (batch, heads)                      step size after softplus, > 0
    A, D   (heads,)
    B, C   (batch, groups, state_size)
    state  (batch, heads, head_dim, state_size)
    rows   (batch,) int64, which row of `state`, of any number, each row goes on from; None: its own
    """
    exact = accumulation_dtype(x)
    state = state if rows is None else state.index_select(0, rows)
    per_group = x.shape[1] // B.shape[1]
    B, C = (v.to(exact).repeat_interleave(per_group, dim=1) for v in (B, C))
    x_exact, dt = x.to(exact), dt.to(exact)
    decay = torch.exp(dt * A.to(exact))
    state = decay[:, :, None, None] * state + (dt[:, :, None] * x_exact)[..., None] * B[:, :, None, :]
    y = (state * C[:, :, None, :]).sum(-1) + D.to(exact)[None, :, None] * x_exact
    return y.to(x.dtype), state


def ssd_scan_sequential(x, dt, A, B, C, D, *, state=None):
    """Run the Mamba-2 recurrence token by token; the definition of `ssd_scan`, with its shapes."""
    batch, length, heads, head_dim = x.shape
    if state is None:
        state = x.new_zeros(batch, heads, head_dim, B.shape[-1], dtype=accumulation_dtype(x))
    outputs = []
    for t in range(length):
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def ssd_scan(x, dt, A, B, C, D, *, state=None, chunk_size=64):
    """Run the Mamba-2 recurrence over a sequence; return its outputs and last state.

    x      (batch, length, heads, head_dim)
    dt     (batch, length, heads)              step size after softplus, > 0
    A      (heads,)                            decay rate, < 0
    B, C   (batch, length, groups, state_size)
    D      (heads,)                            weight of the input added to the output
    state  (batch, heads, head_dim, state_size), zeros when None

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t + D x_t   (paper, eq. 4-5)
    length may be any number >= 1. Sums run in float32 whatever the dtype of x (float64 stays float64).
    """
    groups = B.shape[2]
    if groups == 1:
        return _ssd_scan_group(x, dt, A, B[:, :, 0], C[:, :, 0], D, state, chunk_size)
    per_group = x.shape[2] // groups
    outputs, states = [], []
    for g in range(groups):
        h = slice(g * per_group, (g + 1) * per_group)
        own = None if state is None else state[:, h]
        y, last = _ssd_scan_group(x[:, :, h], dt[:, :, h], A[h], B[:, :, g], C[:, :, g], D[h], own, chunk_size)
        outputs.append(y)
        states.append(last)
    return torch.cat(outputs, dim=2), torch.cat(states, dim=1)


def _ssd_scan_group(x, dt, A, B, C, D, state, chunk_size):
    """Chunked recurrence for heads that share B and C (batch, length, state_size); derivation in docs/model.md."""
    batch, length, heads, head_dim = x.shape
    size = B.shape[-1]
    exact = accumulation_dtype(x)
    q = min(chunk_size, length)
    chunks = -(-length // q)
    x_exact, dt = x.to(exact), dt.to(exact)
    B, C = B.to(exact), C.to(exact)
    padding = chunks * q - length
    if padding:
        # A step of dt 0 neither decays nor adds, so padding changes nothing.
        dt, B, C = (F.pad(v, (0, 0, 0, padding)) for v in (dt, B, C))
        padded = F.pad(x_exact, (0, 0, 0, 0, 0, padding))
    else:
        padded = x_exact
    rows = batch * chunks
    dt = dt.reshape(rows, q, heads)
    B, C = B.reshape(rows, q, size), C.reshape(rows, q, size)
    x_dt = padded.reshape(rows, q, heads, head_dim) * dt[..., None]
    log_decay = torch.cumsum(dt * A.to(exact), dim=1)  # (rows, q, heads), from the chunk's start to after each token
    total = log_decay[:, -1]  # (rows, heads)

    # 1. What each chunk adds to the state, for all heads of the group in one product.
    weighted = x_dt * torch.exp(total[:, None] - log_decay)[..., None]
    added = torch.bmm(B.transpose(1, 2), weighted.reshape(rows, q, heads * head_dim))

    # 2. The state before each chunk.
    added = added.reshape(batch, chunks, size, heads, head_dim)
    carry = torch.exp(total).reshape(batch, chunks, 1, heads, 1)
    if state is None:
        current = added.new_zeros(batch, size, heads, head_dim)
    else:
        current = state.to(exact).permute(0, 3, 1, 2)
    before = []
    for gain, keep in zip(added.unbind(1), carry.unbind(1), strict=True):
        before.append(current)
        current = torch.addcmul(gain, keep, current)
    before = torch.stack(before, dim=1).reshape(rows, size, heads * head_dim)

    # 3. What the earlier chunks contribute, again one product for the group.
    y = torch.bmm(C, before).reshape(rows, q, heads, head_dim) * torch.exp(log_decay)[..., None]

    # 4. What the chunk's own tokens contribute, per head.
    scores = torch.bmm(C, B.transpose(1, 2))  # (rows, q, q)
    by_head = log_decay.transpose(1, 2)  # (rows, heads, q)
    span = by_head[..., :, None] - by_head[..., None, :]
    later = torch.ones(q, q, dtype=torch.bool, device=x.device).triu(1)
    block = torch.exp(span.masked_fill(later, float("-inf"))) * scores[:, None]
    own = torch.matmul(block, x_dt.transpose(1, 2))  # (rows, heads, q, head_dim)
    y = y + own.transpose(1, 2)
    y = y.reshape(batch, chunks * q, heads, head_dim)[:, :length] + D.to(exact)[:, None] * x_exact
    return y.to(x.dtype), current.permute(0, 2, 3, 1).contiguous()


def causal_conv1d(x, weight, bias, *, state=None):
    """Convolve each channel with its own past, then apply SiLU; return outputs and the last inputs.

    x       (batch, length, channels)
    weight  (channels, width)                  weight[:, -1] meets the current token
    bias    (channels,) or None
    state   (batch, width - 1, channels)       the inputs before x, zeros when None
    """
    batch, length, channels = x.shape
    width = weight.shape[1]
    if state is None:
        state = x.new_zeros(batch, width - 1, channels)
    padded = torch.cat([state.to(x.dtype), x], dim=1)
    weight = weight.to(x.dtype)
    y = padded[:, :length] * weight[:, 0]
    for k in range(1, width):
        y = torch.addcmul(y, padded[:, k : k + length], weight[:, k])
    if bias is not None:
        y = y + bias.to(x.dtype)
    # A copy, so that the state does not keep the whole padded input alive.
    return F.silu(y), padded[:, length:].clone()


def attention(q, k, v, *, shared_k=None, shared_v=None):
    """Attend causally: the last query sees every key, the one before it all but the last, and so on.

    q                   (batch, n, heads, head_dim)
    k, v                (batch, m, kv_heads, head_dim), m >= n   m - n of them read in earlier calls
    shared_k, shared_v  (1, p, kv_heads, head_dim) or None       earlier still, the same for every row
    returns             (batch, n, heads, head_dim)

    Queries go in blocks, so that no square of scores is ever held; softmax in float32.
    """
    batch, n, heads, head_dim = q.shape
    m, kv_heads = k.shape[1:3]
    exact = accumulation_dtype(q)
    past = m - n
    per_kv = heads // kv_heads
    p = 0 if shared_k is None else shared_k.shape[1]
    block = max(1, min(n, ATTENTION_SCORES_LIMIT // max(1, batch * heads * (m + p))))
    keys, values = (t.permute(0, 2, 1, 3) for t in (k, v))  # (batch, kv_heads, m, head_dim)
    if p:
        common_keys, common_values = (t.permute(0, 2, 1, 3) for t in (shared_k, shared_v))
    queries = (q * head_dim**-0.5).reshape(batch, n, kv_heads, per_kv, head_dim).permute(0, 2, 3, 1, 4)
    columns = torch.arange(m, device=q.device)
    outputs = []
    for start in range(0, n, block):
        end = min(n, start + block)
        seen = past + end
        part = queries[:, :, :, start:end].reshape(batch, kv_heads, per_kv * (end - start), head_dim)
        scores = torch.matmul(part, keys[:, :, :seen].transpose(2, 3)).to(exact)
        future = columns[None, :seen] > torch.arange(past + start, past + end, device=q.device)[:, None]
        scores = scores.masked_fill(future.repeat(per_kv, 1), float("-inf"))
        if p:
            # One product for all rows, as they share these keys.
            folded = part.transpose(0, 1).reshape(1, kv_heads, -1, head_dim)
            common = torch.matmul(folded, common_keys.transpose(2, 3)).to(exact)
            common = common.reshape(kv_heads, batch, -1, p).transpose(0, 1)
            weights = torch.softmax(torch.cat([common, scores], dim=-1), dim=-1).to(q.dtype)
            folded = weights[..., :p].transpose(0, 1).reshape(1, kv_heads, -1, p)
            out = torch.matmul(folded, common_values).reshape(kv_heads, batch, -1, head_dim).transpose(0, 1)
            out = out + torch.matmul(weights[..., p:], values[:, :, :seen])
        else:
            out = torch.matmul(torch.softmax(scores, dim=-1).to(q.dtype), values[:, :, :seen])
        outputs.append(out.reshape(batch, heads, end - start, head_dim))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def gated_rms_norm(y, z, weight, eps):
    """Gate, then scale each vector to unit mean square: norm(y * silu(z)) * weight.

    y, z    (..., width)
    weight  (width,)
    """
    exact = accumulation_dtype(y)
    gated = y.to(exact) * F.silu(z.to(exact))
    scale = torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    return (gated * scale * weight.to(exact)).to(y.dtype)


def mamba_block(x, state, block):
    """Read through a Mamba-2 block and its MLP, op by op.

    x, state, block  as in `cpu.MambaBlock`, state (conv, ssm, rows)
    returns          what leaves the block, conv, ssm
    """
    conv, ssm, rows = state
    heads, head_dim, size = ssm.shape[1:]
    width, wide = heads * head_dim, block.groups * size
    projected = _rms_norm(x, block.norm, block.eps) @ block.in_proj.t()
    z, mixed, dt = projected.split([width, width + 2 * wide, heads], dim=-1)
    mixed, conv = causal_conv1d(mixed, block.conv[:, 0], block.conv_bias, state=conv)
    inner, B, C = mixed.split([width, wide, wide], dim=-1)
    B, C = (t.unflatten(-1, (block.groups, size)) for t in (B, C))
    dt = F.softplus(dt + block.dt_bias)
    dt = dt if block.dt_range is None else dt.clamp(*block.dt_range)
    ssm = ssm if rows is None else ssm.index_select(0, rows)
    y, ssm = ssd_scan_sequential(
        inner.unflatten(-1, (heads, head_dim)), dt, -torch.exp(block.A_log), B, C, block.D, state=ssm
    )
    x = x + gated_rms_norm(y.flatten(2), z, block.gated_norm, block.gated_eps) @ block.out_proj.t()
    return _add_mlp(x, block), conv, ssm


def attention_block(x, state, block):
    """Read through a block of attention and its MLP, op by op.

    x, state, block  as in `cpu.AttentionBlock`, state (keys, values, shared_keys, shared_values)
    returns          what leaves the block, keys, values
    """
    keys, values, shared_keys, shared_values = state
    normed = _rms_norm(x, block.norm, block.eps)
    q, k, v = ((normed @ w.t()).unflatten(-1, (-1, block.head_dim)) for w in (block.q, block.k, block.v))
    keys, values = torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)
    out = attention(q, keys, values, shared_k=shared_keys, shared_v=shared_values)
    return _add_mlp(x + out.flatten(2) @ block.o.t(), block), keys, values


def _rms_norm(x, weight, eps):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _add_mlp(x, block):
    normed = _rms_norm(x, block.mlp_norm, block.mlp_eps)
    return x + (F.silu(normed @ block.gate.t()) * (normed @ block.up.t())) @ block.down.t()
