"""Which backend runs, and what forcing one does."""

import pytest
import torch

from hybridna_kernels import dispatch, gemm, parity


def test_the_first_that_does_not_refuse_runs(monkeypatch):
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    calls = []
    monkeypatch.setitem(
        dispatch._CANDIDATES,
        "ssd_step",
        [
            ("never", lambda *a: calls.append("never"), lambda args, kwargs: "needs CUDA"),
            ("here", lambda *a: calls.append("here"), None),
            ("later", lambda *a: calls.append("later"), None),
        ],
    )
    dispatch.run("ssd_step", 1)
    assert calls == ["here"]


def test_forcing_a_backend_that_refuses_quotes_the_reason(monkeypatch):
    monkeypatch.setenv("HYBRIDNA_KERNELS", "attention=sdpa")
    (q, k, v), _ = parity.example("attention", length=9)
    with pytest.raises(dispatch.KernelError, match="'sdpa' refuses: no gradient with earlier keys"):
        dispatch.run("attention", q[:, 3:].requires_grad_(), k, v)


@pytest.mark.parametrize("text", ["nonsense", "ssd_scan=sdpa", "nothing=chunked"])
def test_unknown_backends_are_named(monkeypatch, text):
    monkeypatch.setenv("HYBRIDNA_KERNELS", text)
    with pytest.raises(
        dispatch.KernelError, match=rf"no backend '{text}'; known: ssd_scan=triton\|mamba_ssm\|tiles\|cpu\|chunked"
    ):
        dispatch.forced()


def test_one_backend_for_every_op_that_has_it(monkeypatch):
    monkeypatch.setenv("HYBRIDNA_KERNELS", "reference,ssd_scan=sequential")
    assert dispatch.forced()["attention"] == "reference"
    assert dispatch.forced()["ssd_scan"] == "sequential"


def test_report_names_every_op_once_in_use():
    rows = dispatch.report()
    for op in dispatch.OPS:
        assert sum(o == op and state == "in use" for o, _, state in rows) == 1
    assert {name for _, name, _ in rows} >= {"mamba_ssm", "causal_conv1d", "flash_attn"}


def test_linear_and_its_gradients_are_torchs():
    generator = torch.Generator().manual_seed(0)
    x, weight, out = (torch.randn(s, generator=generator) for s in ((3, 5, 16), (7, 16), (3, 5, 7)))
    found = []
    for function in (gemm.linear, torch.nn.functional.linear):
        x_, weight_ = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = function(x_, weight_)
        found.append((y.detach(), *torch.autograd.grad((y * out).sum(), (x_, weight_))))
    for ours, due in zip(*found, strict=True):
        torch.testing.assert_close(ours, due, rtol=1e-5, atol=1e-5)
