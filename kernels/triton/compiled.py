"""Every launch that the Triton kernels make, compiled for a device that need not be there.

op on empty tensors -> launches recorded, not made -> triton.compile for sm_90 -> registers, spills, shared memory
python -m hybridna_kernels.triton.compiled  prints a row of JSON per kernel
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

LARGEST_SHARED = 227 * 1024  # bytes that one program may hold on sm_90
PROCESSORS = 132

# head_dim, state_size, hidden width, channels of the convolution: tiny; 3b; 300m and 7b's mixers.
SHAPES = ((64, 64, 128, 384), (64, 64, 4096, 8320), (64, 128, 1024, 2304), (64, 128, 8192, 8448))


@contextlib.contextmanager
def recorded():
    """Record launches as (kernel, args, keyword arguments) in a list instead of making them."""
    from hybridna_kernels.triton import loss, rows, scan, scan_backward, setting, step

    launches = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **kwargs: launches.append((self.kernel, args, kwargs))

    modules = (loss, rows, scan, scan_backward, step)
    wrap, processors = rows.wrap_triton, setting.processors
    try:
        for module in modules:
            module.wrap_triton = Recorder
        setting.processors = lambda tensor: PROCESSORS
        yield launches
    finally:
        for module in modules:
            module.wrap_triton = wrap
        setting.processors = processors


def launches(head_dim, size, hidden, channels, dtype):
    """Return the launches of every op, forward and backward, with these shapes, as (kernel, args, kwargs)."""
    from hybridna_kernels.triton import loss, rows, scan, scan_backward, setting, step

    exact = torch.float32

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype)

    length, heads = 4096, 2
    mixed = empty(1, length, heads * head_dim + 2 * size)
    x, B, C = mixed.split([heads * head_dim, size, size], dim=-1)
    x, B, C = x.unflatten(-1, (heads, head_dim)), B.unflatten(-1, (1, size)), C.unflatten(-1, (1, size))
    dt, A, state = (
        empty(1, length, heads, dtype=exact),
        empty(heads, dtype=exact),
        empty(1, heads, head_dim, size, dtype=exact),
    )
    weight, bias, before = empty(channels, 4), empty(channels), empty(1, 3, channels)
    row, gain, other = empty(9, hidden), empty(hidden, dtype=exact), empty(9, hidden)
    target = torch.zeros(9, dtype=torch.int64)
    with recorded() as found:
        for first in (None, state) if size <= setting.LARGEST[dtype][1] else ():
            scan.scan(x, dt, A, B, C, A, first)
            scan_backward.scan_backward(x, dt, A, B, C, A, first, empty(1, length, heads, head_dim), first)
        for parents in (None, torch.zeros(1, dtype=torch.int64)):
            step.ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], A, state, parents)
        for past in (None, before):
            rows.convolution(empty(1, 70, channels), weight, bias, past)
            rows.convolution_backward(empty(1, 70, channels), weight, bias, past, empty(1, 70, channels))
        for more, mode in ((other, "gate"), (other, "add"), (None, "plain")):
            rows.norm(row, more, gain, 1e-6, mode)
        for gate, added in ((other, None), (None, None), (None, other)):
            if gate is None or dtype != exact or hidden <= setting.LARGEST_BACKWARD:
                rows.norm_backward(row, gate, gain, row, added, 1e-6)
        head = empty(12, hidden)
        loss.forward(row, head, target)
        loss.backward(row, head, target, empty(9, dtype=exact), empty(9, dtype=exact))
    return found


def build(kernel, args, kwargs, architecture=90):
    """Compile one launch; return a dict of the kernel's name, registers, spilled bytes and shared memory in bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {k: kwargs[k] for k in ("num_warps", "num_stages", "enable_fp_fusion")}
    values = {
        **dict(zip(kernel.arg_names, args, strict=False)),
        **{k: v for k, v in kwargs.items() if k not in options},
    }
    signature, constants, attributes = {}, {}, {}
    constexprs = {p.name for p in kernel.params if p.is_constexpr}
    plain = {p.name for p in kernel.params if p.do_not_specialize}
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        # As a launch specialises: ones and None are constants, multiples of 16 are marked.
        if name in constexprs or value is None or (isinstance(value, int) and value == 1 and name not in plain):
            signature[name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0 and name not in plain:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    usage = _usage(made.asm["cubin"])
    spilled = int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1])
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    sizes = {k: v for k, v in values.items() if isinstance(v, int | str) and k in constexprs}
    return {
        "kernel": kernel.fn.__name__, "dtype": str(values.get("OPERAND", "")), "sizes": sizes,
        "warps": options["num_warps"],
        "registers": registers, "spilled": spilled, "shared": made.metadata.shared,
    }  # fmt: skip


_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}


def _usage(cubin):
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout


def every_launch(shapes=SHAPES):
    """Return each different launch of these shapes and both dtypes, once."""
    distinct = {}
    for shape in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            for kernel, args, kwargs in launches(*shape, dtype):
                key = [kernel.fn.__name__, *(_kind(a) for a in args), *(f"{k}={v}" for k, v in kwargs.items())]
                distinct.setdefault(" ".join(key), (kernel, args, kwargs))
    return list(distinct.values())


def _kind(value):
    if isinstance(value, torch.Tensor):
        return str(value.dtype)
    # What a launch does not specialise on makes no other kernel.
    return str(value if value is None or value == 1 else isinstance(value, int) and value % 16 == 0)


def main():
    """Print a row of JSON per kernel; exit 1 if one spills or takes too much shared memory.

    --sample  one launch of each kernel, in the shapes of 300m in bfloat16
    """
    faults = 0
    if "--sample" in sys.argv:
        found = {}
        for launch in sorted(launches(*SHAPES[2], torch.bfloat16), key=lambda launch: launch[2].get("OUTPUT", False)):
            # The last of a name stays: of the scan, one that writes y.
            found[launch[0].fn.__name__] = launch
        found = found.values()
    else:
        found = every_launch()
    for launch in found:
        row = build(*launch)
        faults += row["spilled"] > 0 or row["shared"] > LARGEST_SHARED
        print(json.dumps(row), flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
