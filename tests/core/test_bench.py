"""bench: equal results come before any timing; what is timed is what is named."""

import pytest

from hybridna_core.commands import bench as module
from hybridna_core.commands.bench import bench
from hybridna_core.errors import GuardError, UsageError

pytest.importorskip("transformers")
SMALL = {"hidden_size": 64, "layers": 2, "state_size": 16, "lengths": (33,), "repeats": 1}


@pytest.mark.parametrize("task", ["forward", "train"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_agree_and_are_timed(task, precision):
    found = bench(task=task, precision=precision, **SMALL)
    (one,) = found.timings
    assert (found.task, found.precision, found.state_size, one.tokens) == (task, precision, 16, 33)
    assert one.difference < (1e-4 if precision == "fp32" else 0.05)
    assert (precision == "bf16") == (one.difference > 1e-4)
    assert one.ratio == one.bamba[0] / one.hybridna[0] and one.hybridna[1] <= one.hybridna[0] <= one.hybridna[2]
    assert 0 < one.products < one.hybridna[2]


@pytest.mark.parametrize("task,what", [("forward", "logits"), ("train", "gradients")])
def test_nothing_is_timed_when_results_differ(monkeypatch, task, what):
    honest = module.bamba_twin

    def spoilt(model, transformers):
        twin = honest(model, transformers)
        twin.lm_head.weight.data *= 2
        return twin

    monkeypatch.setattr(module, "bamba_twin", spoilt)
    with pytest.raises(GuardError, match=f"{what} differ by"):
        bench(task=task, **SMALL)


@pytest.mark.parametrize("change", [{"task": "sleep"}, {"precision": "fp8"}, {"hidden_size": 100}, {"repeats": 0}])
def test_what_cannot_be_timed(change):
    with pytest.raises(UsageError):
        bench(**{**SMALL, **change})
