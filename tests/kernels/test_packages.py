"""The adapters to other packages' CUDA kernels, through stand-ins of their documented signatures, on CPU."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from hybridna_kernels import dispatch, packages, parity, reference


class Stand:
    """Functions of the packages' signatures, written from their documented shapes, and what each was given."""

    def __init__(self):
        self.calls = []

    def mamba_chunk_scan_combined(
        self, x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
        dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False,
    ):  # fmt: skip
        assert not dt_softplus and dt_bias is None and z is None
        self.calls.append("scan")
        y, after = reference.ssd_scan_sequential(x, dt, A, B, C, D, state=initial_states)
        return (y, after) if return_final_states else y

    def selective_state_update(self, state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
        """In place; per batch, head and channel: state <- state exp(dt A) + dt B x, y = C state + D x."""
        assert dt.shape == x.shape and A.shape == state.shape[1:] and D.shape == dt_bias.shape == x.shape[1:]
        # With these strides its kernel reads one number per head; it looks at all of them.
        assert A.stride()[-2:] == (0, 0) and dt.stride(-1) == 0 and D.stride(-1) == 0 and dt_bias.stride(-1) == 0
        dt = dt + dt_bias
        self.calls.append("step")
        B, C = (t.repeat_interleave(x.shape[1] // t.shape[1], dim=1)[:, :, None] for t in (B, C))
        state.copy_(state * torch.exp(dt[..., None] * A) + dt[..., None] * B * x[..., None])
        return (state * C).sum(-1) + D * x

    def causal_conv1d_fn(
        self, x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
        final_states_out=None, activation=None,
    ):  # fmt: skip
        assert activation == "silu" and x.stride(1) == 1 and initial_states.stride(1) == 1
        assert x.stride(0) % 8 == x.stride(2) % 8 == 0
        self.calls.append("convolution")
        padded = torch.cat([initial_states, x], dim=-1)
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=x.shape[1]))

    def flash_attn_func(self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        """Aligned at the last query and the last key."""
        assert causal and softmax_scale is None and not dropout_p
        self.calls.append("attention")
        return reference.attention(q, k, v)


@pytest.fixture
def stand(monkeypatch):
    made = Stand()
    places = {
        "mamba_ssm.ops.triton.ssd_combined": "mamba_chunk_scan_combined",
        "mamba_ssm.ops.triton.selective_state_update": "selective_state_update",
        "causal_conv1d": "causal_conv1d_fn", "flash_attn": "flash_attn_func",
    }  # fmt: skip
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, function in places.items():
        module = types.ModuleType(name)
        setattr(module, function, getattr(made, function))
        monkeypatch.setitem(sys.modules, name, module)
    packages.why_absent.cache_clear()
    yield made
    packages.why_absent.cache_clear()


ADAPTERS = {
    "ssd_scan": packages.ssd_scan, "ssd_step": packages.ssd_step, "causal_conv1d": packages.causal_conv1d,
    "attention": packages.attention,
}  # fmt: skip


def compare(op, args, kwargs):
    found, wanted = ADAPTERS[op](*args, **kwargs), parity.definition(op)(*args, **kwargs)
    found, wanted = ((out,) if torch.is_tensor(out) else out for out in (found, wanted))
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("op", ADAPTERS)
@pytest.mark.parametrize("length", [1, 2, 65])
@pytest.mark.parametrize("with_state", [True, False])
def test_arguments_reach_the_packages_as_they_want_them(op, length, with_state, stand):
    args, kwargs = parity.example(op, length=length, with_state=with_state)
    given = [t.clone() if torch.is_tensor(t) else t for t in (*args, *kwargs.values())]
    compare(op, args, kwargs)
    assert len(stand.calls) == 1
    for before, after in zip(given, (*args, *kwargs.values()), strict=True):
        assert not torch.is_tensor(before) or torch.equal(before, after)


def test_rows_of_a_convolution_that_lie_oddly_are_moved(stand):
    (x, weight, bias), kwargs = parity.example("causal_conv1d", length=9)
    wide = torch.zeros(*x.shape[:2], x.shape[2] + 5, dtype=x.dtype)
    wide[..., 3:-2] = x
    compare("causal_conv1d", (wide[..., 3:-2], weight, bias), kwargs)


def test_packages_are_not_imported_unasked(monkeypatch):
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    monkeypatch.setattr(packages, "why_absent", lambda package: pytest.fail(f"{package} was imported"))
    for op in ADAPTERS:
        args, kwargs = parity.example(op)
        dispatch.run(op, *args, **kwargs)


def test_a_step_goes_on_from_its_parents(stand):
    args, _ = parity.example("ssd_step", batch=5)
    rows = torch.tensor([3, 3, 0, 4, 1])
    compare("ssd_step", args, {"rows": rows})


def test_the_last_query_sees_the_last_key(stand):
    (q, k, v), _ = parity.example("attention", length=30)
    compare("attention", (q[:, 20:], k, v), {})


def test_what_they_cannot_take_is_refused(stand):
    half = {op: parity.example(op, dtype=torch.bfloat16) for op in ADAPTERS}
    for op, (args, kwargs) in half.items():
        assert getattr(packages, f"refuse_{op}")(args, kwargs) == "needs CUDA"
    args, kwargs = parity.example("ssd_scan", dtype=torch.float32)
    assert packages.refuse_ssd_scan(args, kwargs) == "needs bfloat16 or float16"
    (q, k, v), _ = parity.example("attention", dtype=torch.float32)
    assert packages.refuse_attention((q, k, v), {}) == "needs bfloat16 or float16"
    (q, k, v), _ = half["attention"]
    assert packages.refuse_attention((q, k, v), {"shared_k": k[:1]}) == "no keys common to all rows"
    (x, weight, bias), _ = half["causal_conv1d"]
    assert packages.refuse_causal_conv1d((x, weight[:, :1], bias), {}) == "widths of 2 to 4 only"
    assert packages.refuse_causal_conv1d((x[..., :9], weight[:9], bias[:9]), {}) == "channels must be a multiple of 8"
    (x, weight, bias), kwargs = parity.example("causal_conv1d")
    assert packages.refuse_causal_conv1d((x, weight, bias), kwargs) == "needs float32 or fewer bits"
    args, _ = parity.example("ssd_step", dtype=torch.float32)
    args[0].requires_grad_()
    assert packages.refuse_ssd_step(args, {}) == "no backward"
    x = torch.empty(1, 2**15, 2**10, 2**6, dtype=torch.bfloat16, device="meta")
    rest, B = torch.empty(1, device="meta"), torch.empty(1, 2**15, 1, 4, device="meta")
    assert packages.refuse_ssd_scan((x, rest, rest, B, B, rest), {}) == "too long for its offsets"


def test_they_are_listed_with_their_reasons_and_never_run_unasked(stand, monkeypatch):
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    states = {(op, name): state for op, name, state in dispatch.report()}
    for package, ops in packages.SERVED.items():
        assert all(states[op, package] == packages.untested((), {}) for op in ops)
    assert not stand.calls
    monkeypatch.setenv("HYBRIDNA_KERNELS", "mamba_ssm")
    assert {op for op, name in dispatch.forced().items() if name == "mamba_ssm"} == {"ssd_scan", "ssd_step"}
    args, kwargs = parity.example("ssd_step", dtype=torch.float32)
    with pytest.raises(dispatch.KernelError, match="'mamba_ssm' refuses: needs CUDA"):
        dispatch.run("ssd_step", *args, **kwargs)


def test_what_an_import_raises_is_kept(stand, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "flash_attn":
                raise OSError("undefined symbol: _ZN3c104cuda")
            return None

    monkeypatch.delitem(sys.modules, "flash_attn")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    packages.why_absent.cache_clear()
    assert packages.absent() == [("attention", "flash_attn", "OSError: undefined symbol: _ZN3c104cuda")]
    assert ("attention", "flash_attn", "OSError: undefined symbol: _ZN3c104cuda") in dispatch.report()
