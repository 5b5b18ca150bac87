"""The C++ products with small weights against float64, row by row the same bits, and when they are used."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.config import ModelConfig
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.model.lora import add_lora
from hybridna_kernels import cpu, gemm
from hybridna_kernels.cpu import build

EPS = 1e-5
TINY = ModelConfig(64, 96, ("mamba", "attention", "mamba"), 2, 1, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16)

# On vectors, and on matrix tiles where there are any.
WAYS = [0] if cpu.refuse_tiles() else [0, cpu.EXACT]

pytestmark = pytest.mark.skipif(build.library()[0] is None, reason=f"no C++ kernels here: {build.library()[1]}")


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def exact(x, weight, up=None, z=None, norm=None, add=None):
    """The definition, in float64."""
    x, weight = x.double(), weight.double()
    if z is not None:
        x = x * F.silu(z.double())
    if norm is not None:
        x = F.rms_norm(x, x.shape[-1:], norm.double(), EPS)
    y = x @ weight.t()
    if up is not None:
        y = F.silu(y) * (x @ up.double().t())
    return y if add is None else y + add.double()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70), st.integers(1, 80), st.integers(1, 80), st.sampled_from([1, 2, 3]),
    st.sampled_from(["", "norm", "norm z", "norm up", "add", "norm z add"]), st.sampled_from(WAYS), st.integers(0, 9),
)  # fmt: skip
def test_product_is_the_definition_for_every_shape_and_what_is_around_it(
    rows, depth, outputs, threads, around, slices, seed
):
    x, weight, up, z, norm, add = draw(
        seed, (rows, depth), (outputs, depth), (outputs, depth), (rows, depth), (depth,), (rows, outputs)
    )
    named = {"up": up, "z": z, "norm": norm, "add": add}
    options = {name: named[name] for name in around.split()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = cpu.product(x, weight, eps=EPS, slices=slices, **options)
    finally:
        torch.set_num_threads(before)
    wanted = exact(x, weight, **options)
    assert found.shape == (rows, outputs)
    assert (found - wanted).abs().max() <= 3e-6 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize("depth, outputs", [(64, 96), (256, 1288), (512, 33)])
def test_a_rows_bits_depend_on_neither_its_neighbours_nor_threads(depth, outputs):
    x, z, norm, weight, add = draw(0, (300, depth), (300, depth), (depth,), (outputs, depth), (300, outputs))
    before = torch.get_num_threads()

    def take(rows):
        return cpu.product(x[rows], weight, z=z[rows], norm=norm, eps=EPS, add=add[rows])

    try:
        torch.set_num_threads(1)
        whole = take(slice(0, 300))
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for first, count in ((0, 300), (0, 1), (7, 1), (3, 2), (5, 11), (20, 13), (1, 64), (100, 199)):
                rows = slice(first, first + count)
                assert torch.equal(take(rows), whole[rows]), (threads, first, count)
    finally:
        torch.set_num_threads(before)


def test_rows_that_lie_apart_and_further_dimensions_are_read():
    wide, weight = draw(1, (2, 5, 3, 100), (40, 30))
    x = wide[..., 10:40]
    assert torch.equal(cpu.product(x, weight), cpu.product(x.contiguous(), weight))
    assert cpu.product(x, weight).shape == (2, 5, 3, 40)


def test_a_weight_changed_in_place_or_moved_is_read_anew():
    x, start, other = draw(2, (4, 16), (8, 16), (8, 16))
    weight = torch.nn.Parameter(start.clone(), requires_grad=False)
    assert torch.allclose(gemm.linear(x, weight), x @ start.t(), atol=1e-5)
    first = cpu.panels(weight)
    assert cpu.panels(weight) is first
    weight.copy_(other)
    assert torch.allclose(gemm.linear(x, weight), x @ other.t(), atol=1e-5)
    weight.data = start.clone()
    assert torch.allclose(gemm.linear(x, weight), x @ start.t(), atol=1e-5)


def test_small_fixed_weights_are_taken_and_no_others(monkeypatch):
    x, drawn = draw(3, (4, 16), (8, 16))
    fixed = torch.nn.Parameter(drawn, requires_grad=False)
    assert gemm.uses_panels(x, fixed)
    assert not gemm.uses_panels(x, torch.nn.Parameter(drawn))
    assert not gemm.uses_panels(x, drawn)
    assert not gemm.uses_panels(x.double(), fixed)
    assert not gemm.uses_panels(x.requires_grad_(), fixed)
    x = x.detach()
    with torch.inference_mode():
        assert not gemm.uses_panels(x, torch.nn.Parameter(torch.zeros(8, 16), requires_grad=False))
    with gemm.bf16_products():
        assert gemm.uses_panels(x, fixed) == (cpu.refuse_tiles() is None)
        assert not gemm.uses_panels(x[:1], fixed)
        monkeypatch.setenv("HYBRIDNA_KERNELS", "product=vectors")
        assert not gemm.uses_panels(x, fixed)
        monkeypatch.delenv("HYBRIDNA_KERNELS")
    monkeypatch.setattr(cpu, "LARGEST_WEIGHT", 100)
    assert not gemm.uses_panels(x, fixed)
    with gemm.bf16_products():
        assert gemm.uses_panels(x, fixed) == (cpu.refuse_tiles() is None)
        assert not gemm.uses_panels(x[:1], fixed)
        monkeypatch.setattr(cpu, "LARGEST_TILED", 100)
        assert not gemm.uses_panels(x, fixed)
    monkeypatch.undo()
    monkeypatch.setenv("HYBRIDNA_KERNELS", "reference")
    assert not gemm.uses_panels(x, fixed)


def test_a_network_with_fixed_weights_fuses_its_blocks_and_gives_the_same(monkeypatch):
    model = HybridLM(TINY).eval().requires_grad_(False)
    tokens = torch.randint(7, 11, (2, 70), generator=torch.Generator().manual_seed(0))
    calls = Counter()

    def count(name):
        taken = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *args, **more: calls.update([name]) or taken(*args, **more))

    count("product")
    count("read_blocks")
    found, state = model(tokens)
    assert calls == {"read_blocks": 1}
    # Read op by op, a block has two or four products and three of its MLP.
    for text, expected in (
        ("ssd_scan=chunked", {"read_blocks": 1, "product": 2 * 5}),
        ("causal_conv1d=reference", {"read_blocks": 1, "product": 2 * 5}),
        ("attention=sdpa", {"read_blocks": 2, "product": 7}), ("reference", {}),
    ):  # fmt: skip
        monkeypatch.setenv("HYBRIDNA_KERNELS", text)
        calls.clear()
        wanted, after = model(tokens)
        assert calls == expected
        assert (found - wanted).abs().max() < 1e-5
        assert (state.layers[0].ssm - after.layers[0].ssm).abs().max() < 1e-5


@pytest.mark.skipif(not gemm._has_onednn(), reason="torch is built without oneDNN")
def test_training_goes_through_mkl_on_intels_processors_alone(monkeypatch):
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    x, weight = torch.randn(20, 32), torch.randn(40, 32, requires_grad=True)

    def is_ours():
        return type(gemm.linear(x, weight).grad_fn).__name__ == "_LinearBackward"

    for suits in (True, False):
        monkeypatch.setattr(gemm, "_suits_mkl", lambda suits=suits: suits)
        assert is_ours() == (not suits)
        for way, asked in (("onednn", True), ("torch", False)):
            with monkeypatch.context() as patch:
                patch.setenv("HYBRIDNA_KERNELS", f"product={way}")
                assert is_ours() == asked


def test_adapters_and_trained_weights_are_not_bypassed():
    model = HybridLM(TINY).eval().requires_grad_(False)
    tokens = torch.randint(7, 11, (1, 40), generator=torch.Generator().manual_seed(1))
    plain = model(tokens)[0]
    add_lora(model, 2, 4.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".up"):
                p.fill_(0.05)
        adapted = model(tokens)[0]
    assert (adapted - plain).abs().max() > 1e-3
    model(tokens)[0].sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.endswith((".up", ".down")))
