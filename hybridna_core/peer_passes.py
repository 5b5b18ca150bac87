"""Passes of a model beside transformers' with the same weights: whole networks, and a Mamba-2 mixer by itself.

model -> transformers' twin of it -> same tokens through both -> equal results, or GuardError -> both timed in turn
"""

import dataclasses

import torch

from hybridna_core.errors import SystemFault
from hybridna_core.model.hybrid import flops_per_token
from hybridna_core.model.state import ModelState
from hybridna_core.timing import TOLERANCE, check_equal, make_timing, spread, take_peaks, take_turns
from hybridna_core.train.loop import is_counted
from hybridna_kernels import cpu
from hybridna_kernels.gemm import bf16_products, linear


def time_passes(ours, length, task, precision, repeats):
    """Compare a model and transformers' on the same tokens, then time them in turn; return a Timing.

    task       "forward": logits of all tokens; "train": loss and all gradients
    precision  one of TOLERANCE, of our products on CPU, of both ways on CUDA: in "forward" it is that of our weights
    """
    device = ours.device
    theirs = bamba_twin(ours, find_transformers()).train(task == "train").requires_grad_(task == "train")
    tokens = torch.randint(7, 11, (1, length), generator=torch.Generator().manual_seed(length)).to(device)
    is_rounded = precision == "bf16" and device.type != "cpu"

    def casting():
        return torch.autocast(device.type, torch.bfloat16, enabled=is_rounded and task == "train")

    def run_ours():
        with bf16_products(precision == "bf16"), torch.set_grad_enabled(task == "train"):
            # As in training, the head is left out.
            with casting():
                hidden, _ = ours(tokens)
            return finish(ours, ours.head(hidden.to(ours.dtype)))

    def run_theirs():
        with torch.set_grad_enabled(task == "train"):
            with casting():
                logits = theirs(tokens, use_cache=False).logits
            return finish(theirs, logits.float())

    def finish(model, logits):
        if task == "forward":
            return [logits]
        model.zero_grad()
        target = tokens[:, 1:][is_counted(tokens)]
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target).backward()
        return [p.grad / p.grad.abs().max() for _, p in sorted(model.named_parameters())]

    what = "logits" if task == "forward" else "gradients"
    # Where both ways are rounded, each may be off by as much.
    limit = TOLERANCE[precision] * (2 if is_rounded else 1)
    difference = check_equal(what, run_ours(), run_theirs(), limit, f"{length} tokens")
    alone = [make_products(ours, length, precision), run_peak] if device.type == "cpu" else []
    if alone:
        alone[0]()
    # Gradients of the comparison would be freed within the measured pass.
    ours.zero_grad()
    theirs.zero_grad()
    peaks = take_peaks([run_ours, run_theirs], device)
    seconds = take_turns([run_ours, run_theirs, *alone], repeats, device)
    timing = make_timing("", length, length, seconds[:3], difference)._replace(peaks=peaks)
    if task == "train" or precision != "fp32" or not alone:
        return timing
    return timing._replace(peak_share=find_share(flops_per_token(ours.config, length) * length, timing, seconds[3]))


def make_products(model, length, precision):
    """Return a function that takes the matrix products with weights of a forward pass on CPU."""
    weights = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    inputs = {w.shape[1]: torch.randn(min(length, model.segment), w.shape[1]) for w in weights}

    @torch.no_grad()
    def run_products():
        with bf16_products(precision == "bf16"):
            for _ in range(0, length, model.segment):
                for weight in weights:
                    linear(inputs[weight.shape[1]], weight)

    return run_products


def time_mixer(model, length, precision, repeats):
    """Compare the first Mamba-2 mixer of a model and transformers' on the same input; return a Timing.

    Ours reads as much at a time as the model does. precision: of our products, one of TOLERANCE
    """
    ours, c = next(block.mamba for block in model.model.layers if block.kind == "mamba"), model.config
    theirs = mamba2_twin(ours, c, find_transformers())
    x = torch.randn(1, length, c.hidden_size, generator=torch.Generator().manual_seed(length))
    start = ModelState.start(dataclasses.replace(c, layer_types=("mamba",)), 1).layers[0]

    @torch.no_grad()
    def run_ours():
        parts, state = [], start
        with bf16_products(precision == "bf16"):
            for part in x.split(model.segment, dim=1):
                mixed, state = ours(part, state)
                parts.append(mixed)
        return [torch.cat(parts, dim=1)]

    @torch.no_grad()
    def run_theirs():
        return [theirs(x)]

    # Relative to the largest, as a mixer's output has no unit.
    scale = run_theirs()[0].abs().max()
    found, wanted = ([out / scale for out in run()] for run in (run_ours, run_theirs))
    difference = check_equal("outputs", found, wanted, TOLERANCE[precision], f"{length} tokens")
    peaks = take_peaks([run_ours, run_theirs])
    seconds = take_turns([run_ours, run_theirs], repeats)
    return make_timing("", length, length, seconds, difference)._replace(peaks=peaks)


# Some 3e9 operations: long enough to time, short beside a pass.
PEAK_ROUNDS = 1 << 22


def run_peak():
    return cpu.multiply_add(PEAK_ROUNDS) if cpu.refuse() is None else None


def find_share(operations, timing, seconds):
    """Return the operations a second of our way as a share of those of `run_peak`, None without a compiler."""
    done = run_peak()
    return None if done is None else operations / timing.hybridna[0] / (done / spread(seconds)[0])


def find_transformers():
    """Return the module transformers; raise SystemFault where it is absent."""
    try:
        import transformers
    except ImportError as error:
        hint = "pip install transformers==5.23.0"
        raise SystemFault(f"the peer to compare with is absent ({error})", where="bench", hint=hint) from None
    return transformers


def bamba_twin(model, transformers):
    """Build transformers' Bamba, rotary embedding off, with a model's own weights, its device and number format."""
    c = model.config
    peer_config = transformers.BambaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads, mamba_n_heads=c.mamba_n_heads, mamba_d_head=c.mamba_d_head,
        attn_layer_indices=[i for i, kind in enumerate(c.layer_types) if kind == "attention"],
        mamba_n_groups=c.mamba_n_groups, mamba_d_state=c.mamba_d_state, mamba_d_conv=c.mamba_d_conv,
        mamba_expand=c.mamba_width // c.hidden_size, mamba_chunk_size=256, mamba_conv_bias=True, mamba_proj_bias=False,
        attention_bias=False, mlp_bias=False, rms_norm_eps=c.rms_norm_eps, tie_word_embeddings=False,
        z_loss_coefficient=0.0, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.0},
    )  # fmt: skip
    peer = transformers.BambaForCausalLM(peer_config).eval().requires_grad_(False)
    peer.load_state_dict(model.state_dict(), strict=True)
    return peer.to(model.device, model.dtype)


def mamba2_twin(mixer, c, transformers):
    """Build transformers' Mamba2Mixer with the weights of a mixer of ours; c: the ModelConfig of its network."""
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    peer_config = transformers.Mamba2Config(
        num_heads=c.mamba_n_heads, head_dim=c.mamba_d_head, hidden_size=c.hidden_size, state_size=c.mamba_d_state,
        num_hidden_layers=1, layer_norm_epsilon=c.rms_norm_eps, expand=c.mamba_width // c.hidden_size,
        conv_kernel=c.mamba_d_conv, n_groups=c.mamba_n_groups, use_bias=False, use_conv_bias=True, chunk_size=256,
    )  # fmt: skip
    peer = Mamba2Mixer(peer_config, layer_idx=0).eval().requires_grad_(False)
    peer.load_state_dict(mixer.state_dict(), strict=True)
    return peer
