"""The C++ kernels against the float64 definitions, and what happens where they cannot be compiled."""

import os
import subprocess
import sys

import pytest
import torch

from hybridna_kernels import cpu, dispatch, parity, pointwise, reference
from hybridna_kernels.cpu import build

LENGTHS = [1, 2, 63, 64, 65, 257, 1000]
PLAIN = {
    "ssd_scan": reference.ssd_scan,
    "ssd_step": reference.ssd_step,
    "causal_conv1d": reference.causal_conv1d,
    "gated_rms_norm": reference.gated_rms_norm,
    "attention": reference.attention,
}
# Below this, one rounding of the last result decides which of two errors is the larger.
ROUNDING = 3e-7

compiled = pytest.mark.skipif(build.library()[0] is None, reason=f"no C++ kernels here: {build.library()[1]}")


def test_sources_compile_where_there_is_a_compiler():
    # The tests marked `compiled` skip without a library; a mistake in the sources must not pass for an absent compiler.
    try:
        build.find_compiler()
        build.openmp_runtime()
        build.cache_folder()
    except build.BuildError as error:
        pytest.skip(str(error))
    assert build.library()[1] is None


@pytest.fixture
def filled_with_nan():
    """Fill memory that an op allocates, and may forget to write, with NaN."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(5).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture
def threads():
    """Set the number of threads, for this test only."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def single(value):
    """Return float32 copies of tensors that lie among others, so that no row follows the last at once."""
    if isinstance(value, dict):
        return {k: single(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(single(v) for v in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    if value.ndim < 3:
        return value.float()
    wide = torch.full((*value.shape[:2], value.shape[2] + 5, *value.shape[3:]), float("nan"))
    wide[:, :, 2 : value.shape[2] + 2] = value
    return wide[:, :, 2 : value.shape[2] + 2]


def draw(op, length, with_state=True, groups=1, batch=2):
    args, kwargs = parity.example(op, length=length, with_state=with_state, seed=length, batch=batch)
    if op == "ssd_scan" and groups == 2:
        x, dt, A, B, C, D = args
        args = x, dt, A, *(torch.cat([t, 2 * t.flip(1)], dim=2) for t in (B, C)), D
    return args, kwargs


def agree(op, args, kwargs):
    """Hold a C++ kernel, on strided float32 inputs, to twice the error of plain torch in float32."""
    exact = parity._outputs(parity.definition(op), args, kwargs)
    args, kwargs = single(args), single(kwargs)
    plain = parity._difference(parity._outputs(PLAIN[op], args, kwargs), exact)
    found = parity._outputs(getattr(cpu, op), args, kwargs)
    for f, e in zip(found, exact, strict=True):
        assert f.shape == e.shape and f.dtype == torch.float32 and f.is_contiguous()
    assert parity._difference(found, exact) <= max(ROUNDING, 2 * plain)


@compiled
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_scan_is_the_recurrence(length, with_state, groups, filled_with_nan):
    agree("ssd_scan", *draw("ssd_scan", length, with_state, groups))


@compiled
@pytest.mark.parametrize("heads,head_dim,size", [(3, 5, 7), (1, 1, 1), (2, 33, 9), (2, 64, 128), (6, 70, 18)])
def test_scan_of_any_shape(heads, head_dim, size, filled_with_nan):
    generator = torch.Generator().manual_seed(heads)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    dt = torch.nn.functional.softplus(normal(2, 130, heads) - 2)
    args = normal(2, 130, heads, head_dim), dt, -normal(heads).exp(), normal(2, 130, 1, size), normal(2, 130, 1, size)
    agree("ssd_scan", (*args, normal(heads)), {"state": normal(2, heads, head_dim, size)})


def draw_step(batch, heads, head_dim, groups, size, parents, seed=0):
    """Draw inputs of ssd_step for rows that go on from others; return (args, kwargs)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, B, C = normal(batch, heads, head_dim), normal(batch, groups, size), normal(batch, groups, size)
    dt = torch.nn.functional.softplus(normal(batch, heads) - 2)
    state = normal(batch if parents is None else parents, heads, head_dim, size)
    rows = None if parents is None else torch.randint(parents, (batch,), generator=generator)
    return (x, dt, -normal(heads).exp(), B, C, normal(heads), state), {"rows": rows}


@compiled
@pytest.mark.parametrize("parents", [None, 1, 3, 40])
@pytest.mark.parametrize(
    "shape", [(9, 4, 64, 1, 64), (1, 4, 16, 2, 32), (5, 3, 5, 1, 7), (2, 1, 1, 1, 1), (3, 6, 70, 3, 18)]
)
def test_step_goes_on_from_any_row(shape, parents, filled_with_nan):
    agree("ssd_step", *draw_step(*shape, parents))


@compiled
def test_step_past_the_caches(filled_with_nan):
    # So large a state is written around the caches.
    args, kwargs = draw_step(300, 2, 64, 1, 64, 300)
    assert args[-1].numel() >= 2**21
    agree("ssd_step", args, kwargs)


@compiled
def test_step_reads_its_parents_and_leaves_them_alone():
    args, kwargs = single(draw_step(6, 2, 8, 1, 16, 3))
    before = args[-1].clone()
    y, after = cpu.ssd_step(*args, **kwargs)
    assert torch.equal(args[-1], before)
    gathered = (*args[:-1], before[kwargs["rows"]])
    for found, due in zip(cpu.ssd_step(*gathered), (y, after), strict=True):
        assert torch.equal(found, due)


def test_step_with_gradients_is_left_to_torch():
    args, kwargs = draw_step(2, 2, 4, 1, 4, None)
    args = tuple(t.float().requires_grad_() for t in args)
    assert cpu.refuse_ssd_step(args, kwargs) == "no backward"
    dispatch.run("ssd_step", *args)[0].sum().backward()
    assert all(t.grad is not None for t in args)


@compiled
def test_scan_packs_long_inputs_in_rounds():
    # More rows and groups than are packed at a time.
    agree("ssd_scan", *draw("ssd_scan", 200, groups=2, batch=40))
    agree("ssd_scan", *draw("ssd_scan", 64 * 64 + 65, batch=1))


@compiled
def test_long_decay_neither_overflows_nor_loses_the_state():
    args, kwargs = draw("ssd_scan", 300)
    agree("ssd_scan", (*args[:2], args[2] * 1000, *args[3:]), kwargs)


@compiled
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("with_state", [False, True])
def test_convolution(length, with_state, filled_with_nan):
    agree("causal_conv1d", *draw("causal_conv1d", length, with_state))


@compiled
@pytest.mark.parametrize("channels,width,with_bias", [(64, 4, True), (64, 4, False), (33, 4, True), (7, 2, True)])
def test_convolution_of_any_shape(channels, width, with_bias, filled_with_nan):
    x, weight, bias = (torch.randn(s, dtype=torch.float64) for s in ((2, 70, channels), (channels, width), (channels,)))
    agree("causal_conv1d", (x, weight, bias if with_bias else None), {"state": x[:, : width - 1].flip(2)})


@compiled
@pytest.mark.parametrize("width", [1, 15, 64, 300])
def test_gated_norm(width, filled_with_nan):
    y, z, weight = (torch.randn(s, dtype=torch.float64) for s in ((2, 9, width), (2, 9, width), (width,)))
    agree("gated_rms_norm", (y, 3 * z, weight, 1e-6), {})


@compiled
@pytest.mark.parametrize(
    "n,past,shared", [(8, 0, 0), (65, 0, 0), (1000, 0, 0), (40, 23, 17), (97, 96, 96), (9, 500, 0)]
)
@pytest.mark.parametrize("head_dim", [2, 32, 70])
def test_attention(n, past, shared, head_dim, filled_with_nan):
    generator = torch.Generator().manual_seed(n)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    k, v = normal(2, n + past, 2, head_dim), normal(2, n + past, 2, head_dim)
    common = {name: normal(1, shared, 2, head_dim) for name in ("shared_k", "shared_v")} if shared else {}
    agree("attention", (normal(2, n, 12, head_dim), k, v), common)


@compiled
def test_attention_to_scores_far_apart():
    q, k, v = draw("attention", 200)[0]
    agree("attention", (30 * q, 30 * k, v), {})


@compiled
@pytest.mark.parametrize("op", ["ssd_scan", "causal_conv1d"])
@pytest.mark.parametrize("cuts", [[1], [64], [63, 64, 130], [2, 3, 4]])
def test_reading_in_parts_is_reading_at_once(op, cuts):
    args, kwargs = single(draw(op, 200))
    along = 5 if op == "ssd_scan" else 1
    due, due_state = getattr(cpu, op)(*args, **kwargs)
    state, parts = kwargs["state"], []
    for start, end in zip([0, *cuts], [*cuts, 200], strict=True):
        part = [t[:, start:end] if i < along and t.ndim > 1 else t for i, t in enumerate(args)]
        y, state = getattr(cpu, op)(*part, state=state)
        parts.append(y)
    for found, expected in ((torch.cat(parts, dim=1), due), (state, due_state)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@compiled
@pytest.mark.parametrize("op", list(PLAIN))
def test_bits_depend_neither_on_threads_nor_on_other_rows(op, threads):
    args, kwargs = single(draw(op, 150, batch=5))
    runs = []
    for number in (1, 2, 3, 16):
        threads(number)
        runs.append(parity._outputs(getattr(cpu, op), args, kwargs))
    row = [t[3:4] if isinstance(t, torch.Tensor) and t.ndim > 1 and len(t) == 5 else t for t in args]
    own = {k: v[3:4] for k, v in kwargs.items() if v is not None}
    alone = parity._outputs(getattr(cpu, op), row, own)
    for i, out in enumerate(runs[0]):
        assert all(torch.equal(out, run[i]) for run in runs)
        assert torch.equal(out[3:4], alone[i])


@compiled
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 5, 256), (5000,)])
def test_pointwise_passes(shape, monkeypatch, filled_with_nan):
    x, more, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])
    found = [*pointwise.add_rms_norm(x, more, weight, 1e-6), pointwise.add_rms_norm(x, None, weight, 1e-6)[1]]
    found.append(pointwise.silu_mul(20 * x, more))
    monkeypatch.setenv("HYBRIDNA_KERNELS", "reference")
    monkeypatch.setattr(cpu.build, "_found", (None, "not to be used"))
    due = [*pointwise.add_rms_norm(x, more, weight, 1e-6), pointwise.add_rms_norm(x, None, weight, 1e-6)[1]]
    due.append(pointwise.silu_mul(20 * x, more))
    torch.testing.assert_close(found, due, rtol=2e-6, atol=1e-6)


@compiled
def test_extreme_inputs_of_the_gate():
    x = torch.tensor([0.0, -0.0, 1e-30, 50.0, -50.0, 88.0, 200.0, -200.0, 1e30, -1e30, float("nan"), float("inf")])
    found = cpu.silu_mul(x, torch.ones_like(x))
    torch.testing.assert_close(found, torch.nn.functional.silu(x), rtol=1e-6, atol=1e-30, equal_nan=True)


@compiled
def test_what_they_refuse():
    args, kwargs = parity.example("ssd_scan", length=9, dtype=torch.float32)
    double = parity.example("ssd_scan", length=9)
    assert cpu.refuse_ssd_scan(args, kwargs) is None
    assert cpu.refuse_ssd_scan(*double) == "needs float32"
    assert cpu.refuse_ssd_scan(args, {"chunk_size": 32}) == "chunks of 64 only"
    meta = [t.to("meta") for t in args]
    assert cpu.refuse_ssd_scan(meta, {}) == "needs CPU"
    q, k, v = parity.example("attention", length=65, dtype=torch.float32)[0]
    assert cpu.refuse_attention((q, k, v), {}) is None
    q.requires_grad_()
    assert cpu.refuse_attention((q, k, v), {}) is None
    later = q[:, 1:], k, v
    assert cpu.refuse_attention(later, {}) == "no backward with earlier keys"
    with torch.no_grad():
        assert cpu.refuse_attention(later, {}) is None
    assert cpu.refuse_attention([t[..., :3] for t in (q, k, v)], {}) == "head_dim odd or above 256"


REPORT = """
import torch
from hybridna_kernels import dispatch, parity
args, kwargs = parity.example("ssd_scan", length=9, dtype=torch.float32)
assert dispatch.run("ssd_scan", *args, **kwargs)[0].isfinite().all()
for row in dispatch.report():
    print(*row, sep="|")
"""


def python(code, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    for name in [name for name, value in environment.items() if value is None]:
        del environment[name]
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


def test_a_broken_compiler_leaves_the_reference_and_a_reason(tmp_path):
    done = python(REPORT, CXX="/bin/false", XDG_CACHE_HOME=str(tmp_path), HYBRIDNA_KERNELS="auto")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    if sys.platform == "linux":
        assert "ssd_scan|cpu|/bin/false failed: exit 1" in rows
    assert "ssd_scan|chunked|in use" in rows and "gated_rms_norm|reference|in use" in rows
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_an_absent_compiler_is_named(tmp_path):
    done = python(REPORT, CXX=None, PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), HYBRIDNA_KERNELS=None)
    assert done.returncode == 0, done.stderr
    if sys.platform == "linux":
        assert "ssd_scan|cpu|no C++ compiler (g++, c++, clang++ or $CXX)" in done.stdout


def test_forcing_the_reference_compiles_nothing(tmp_path):
    done = python(REPORT, XDG_CACHE_HOME=str(tmp_path), HYBRIDNA_KERNELS="reference")
    assert done.returncode == 0, done.stderr
    assert "ssd_scan|cpu|HYBRIDNA_KERNELS asks for chunked" in done.stdout
    assert "attention|reference|in use" in done.stdout
    assert not list(tmp_path.iterdir())


@compiled
def test_processes_that_start_at_once_leave_one_library(tmp_path):
    code = "from hybridna_kernels.cpu import build; build.FLAGS = *build.FLAGS[:-1], '-O0'; print(build.library()[1])"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [p.communicate(timeout=300)[0].strip() for p in started] == ["None"] * 3
    (library,) = (tmp_path / "hybridna").iterdir()
    assert library.suffix == ".so"


@compiled
@pytest.mark.parametrize("home", [None, "/dev/null"])
def test_without_a_home_the_library_goes_to_a_private_temporary_folder(tmp_path, home):
    code = "from hybridna_kernels.cpu import build; print(build.cache_folder())"
    variables = {"HOME": home or "/dev/null", "XDG_CACHE_HOME": None if home else "/dev/null", "TMPDIR": str(tmp_path)}
    done = python(code, **variables)
    assert done.stdout.strip() == str(tmp_path / f"hybridna-{os.getuid()}"), done.stderr
    assert (tmp_path / f"hybridna-{os.getuid()}").stat().st_mode & 0o077 == 0


@compiled
def test_a_temporary_folder_that_others_may_write_is_not_trusted(tmp_path):
    (tmp_path / f"hybridna-{os.getuid()}").mkdir()
    (tmp_path / f"hybridna-{os.getuid()}").chmod(0o777)
    code = "from hybridna_kernels.cpu import build; print(build.library()[1])"
    done = python(code, HOME="/dev/null", XDG_CACHE_HOME=None, TMPDIR=str(tmp_path))
    assert done.stdout.strip() == "no folder to compile into", done.stderr


@compiled
@pytest.mark.skipif(build.platform.machine() != "x86_64", reason="names x86 instruction sets")
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3"])
def test_narrower_vectors(machine, monkeypatch, tmp_path):
    if machine == "x86-64-v3" and " avx2 " not in build._processor():
        pytest.skip("no AVX2 here")
    monkeypatch.setattr(build, "MACHINE", f"-march={machine}")
    monkeypatch.setattr(build, "_found", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.library()[1] is None
    for length in (2, 130):
        agree("ssd_scan", *draw("ssd_scan", length, groups=2))
        agree("causal_conv1d", *draw("causal_conv1d", length))
    agree("attention", *draw("attention", 130))
    agree("gated_rms_norm", *draw("gated_rms_norm", 9))
    rows = parity.check()
    assert {op for op, *_ in rows} >= set(parity.BLOCKS) and all(error <= limit for *_, error, limit in rows)
    generator = torch.Generator().manual_seed(0)
    for rows, depth, outputs in ((1, 3, 5), (7, 20, 33), (50, 64, 40)):
        x, weight = (torch.randn(n, depth, generator=generator) for n in (rows, outputs))
        assert (cpu.product(x, weight) - x.double() @ weight.double().t()).abs().max() < 1e-4


@compiled
def test_report_is_of_the_dtype_asked(monkeypatch):
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    fastest = "cpu" if cpu.refuse_tiles() else "tiles"
    assert ("ssd_scan", fastest, "in use") in dispatch.report()
    assert ("ssd_scan", "cpu", "needs float32") in dispatch.report(dtype=torch.bfloat16)
    assert ("ssd_scan", "chunked", "in use") in dispatch.report(dtype=torch.bfloat16)
