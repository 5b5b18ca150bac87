"""Every usable backend of every op against its slow definition in float64.

random inputs per op -> definition in float64 -> definition and backend in float32 -> largest errors
"""

import torch

from hybridna_kernels import cpu, dispatch, gemm, reference

_DEFINITIONS = {
    "ssd_scan": reference.ssd_scan_sequential,
    "ssd_step": reference.ssd_step,
    "causal_conv1d": reference.causal_conv1d,
    "attention": reference.attention,
    "gated_rms_norm": reference.gated_rms_norm,
}
# Of blocks that are read in one call.
BLOCKS = {"mamba_block": reference.mamba_block, "attention_block": reference.attention_block}


def definition(op):
    """Return the slow function that defines an op."""
    return _DEFINITIONS[op]


def example(op, *, length=65, batch=2, with_state=True, seed=0, device="cpu", dtype=torch.float64):
    """Draw plausible inputs of an op; return (args, kwargs). Lengths are tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    heads, head_dim, groups, size = 4, 32, 1, 32
    if op in ("ssd_scan", "ssd_step"):
        dt = torch.nn.functional.softplus(normal(batch, length, heads) - 2)
        A, D = -torch.exp(normal(heads)), normal(heads)
        x, B, C = (normal(batch, length, n, w) for n, w in ((heads, head_dim), (groups, size), (groups, size)))
        state = normal(batch, heads, head_dim, size)
        if op == "ssd_step":
            return (x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state), {}
        return (x, dt, A, B, C, D), {"state": state if with_state else None}
    if op == "causal_conv1d":
        state = normal(batch, 3, 24) if with_state else None
        return (normal(batch, length, 24), normal(24, 4), normal(24)), {"state": state}
    if op == "attention":
        k, v = normal(batch, length, 2, head_dim), normal(batch, length, 2, head_dim)
        return (normal(batch, length, heads, head_dim), k, v), {}
    y, z = normal(batch, length, 64), normal(batch, length, 64)
    return (y, z, normal(64), 1e-6), {}


def example_block(kind, *, length=65, batch=2, seed=0, device="cpu", dtype=torch.float64):
    """Draw plausible arguments of one of BLOCKS: x, state, block."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0, offset=0.0):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + offset).to(device, dtype)

    def weight(*shape, **more):
        return torch.nn.Parameter(normal(*shape, **more), requires_grad=False)

    hidden, heads, head_dim, size, inner = 48, 4, 32, 32, 80
    width = heads * head_dim
    channels = width + 2 * size
    mlp = {
        "mlp_norm": weight(hidden, offset=1), "gate": weight(inner, hidden, scale=0.2),
        "up": weight(inner, hidden, scale=0.2), "down": weight(hidden, inner, scale=0.2), "mlp_eps": 1e-5,
    }  # fmt: skip
    x = normal(batch, length, hidden)
    if kind == "attention_block":
        block = cpu.AttentionBlock(
            norm=weight(hidden, offset=1), q=weight(width, hidden, scale=0.3), k=weight(width // 2, hidden, scale=0.3),
            v=weight(width // 2, hidden, scale=0.3), o=weight(hidden, width, scale=0.2), eps=1e-5, heads=heads,
            kv_heads=heads // 2, **mlp,
        )  # fmt: skip
        lengths = (batch, 7), (batch, 7), (1, 30), (1, 30)
        return x, tuple(normal(*shape, heads // 2, head_dim) for shape in lengths), block
    block = cpu.MambaBlock(
        norm=weight(hidden, offset=1), in_proj=weight(width + channels + heads, hidden, scale=0.2),
        conv=weight(channels, 1, 4), conv_bias=weight(channels), dt_bias=weight(heads, offset=-2), A_log=weight(heads),
        D=weight(heads), gated_norm=weight(width, offset=1), out_proj=weight(hidden, width, scale=0.2), eps=1e-5,
        gated_eps=1e-5, dt_range=None, groups=1, size=size, **mlp,
    )  # fmt: skip
    return x, (normal(batch, 3, channels), normal(batch, heads, head_dim, size), None), block


def example_product(device="cpu"):
    """Draw rows and a weight of no round size, float32."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).to(device) for shape in ((2, 65, 200), (90, 200)))
    return x, torch.nn.Parameter(weight, requires_grad=False)


def check(device="cpu"):
    """Compare each backend that may be used with its definition; return rows (op, backend, error, limit).

    The last rows, where there are any, are of products with weights, and of whole blocks that `cpu.read_blocks` reads
    in one call.

    error  largest difference of a float32 output or state from the float64 definition, relative to its largest value
    limit  twice what the definition itself loses in float32, and at least 1e-6
    """
    rows = []
    for op in dispatch.OPS:
        exact = _outputs(_DEFINITIONS[op], *example(op, device=device))
        args, kwargs = example(op, device=device, dtype=torch.float32)
        limit = max(1e-6, 2 * _difference(_outputs(_DEFINITIONS[op], args, kwargs), exact))
        for name, function, _ in dispatch.backends(op):
            if dispatch.refusal(op, name, args, kwargs) is None:
                rows.append((op, name, _difference(_outputs(function, args, kwargs), exact), limit))
    x, weight = example_product(device)
    exact = (x.double() @ weight.double().t(),)
    limit = max(1e-6, 2 * _difference((x @ weight.t(),), exact))
    for way in dispatch.PRODUCTS:
        if gemm.refuse_product(way, device) is None:
            rows.append(("product", way, _difference((gemm.multiply(way, x, weight),), exact), limit))
    for kind, definition in BLOCKS.items():
        x, state, block = example_block(kind, device=device, dtype=torch.float32)
        laid = cpu.LaidOut(block, gemm.count_slices(x.shape[1], 1))
        if gemm.refuse_block(x, state, laid) is None:
            exact = _outputs(definition, example_block(kind, device=device), {})
            limit = max(1e-6, 2 * _difference(_outputs(definition, (x, state, block), {}), exact))
            out, (after,) = cpu.read_blocks(x, [state], [laid])
            rows.append((kind, "cpu", _difference((out, *after), exact), limit))
    return rows


@torch.no_grad()
def _outputs(function, args, kwargs):
    out = function(*args, **kwargs)
    return out if isinstance(out, tuple) else (out,)


def _difference(found, exact):
    return max(float((f.double() - e).abs().max() / e.abs().max()) for f, e in zip(found, exact, strict=True))
