"""Heads, how hidden vectors are read for them, and adapters."""

import dataclasses

import numpy as np
import pytest
import torch
from toys import SMALL, random_model

from hybridna_core.errors import UsageError
from hybridna_core.model.layers import Linear
from hybridna_core.model.lora import LoraLinear, add_lora, lora_tensors, merge_lora
from hybridna_core.model.readout import HeadConfig, Predictor, pad_rows, predict_outputs, read_features
from hybridna_core.tokenizer import encode, reverse_complement

SEQUENCES = ["ACGTTGCA", "TTG", "GATTACAGATTACANGC", "C"]


def predictor(outputs=3, **config):
    return Predictor(random_model(), HeadConfig(SMALL.hidden_size, outputs, **config), seed=1)


def hidden_of(model, text):
    """Vectors of a text of bases after the start token, by the plain model."""
    with torch.no_grad():
        return model(torch.tensor([[2, *encode(text)]]))[0][0, 1:]


@pytest.mark.parametrize("echo", [None, "same", "rc"])
@pytest.mark.parametrize(("head", "reading"), [("linear", "last"), ("linear", "mean"), ("cnn", "mean")])
def test_padded_rows_are_read_as_each_alone(head, reading, echo):
    made = predictor(head=head, reading=reading, echo=echo)
    with torch.no_grad():
        found = made.features(pad_rows([made.tokens(text) for text in SEQUENCES]))
    for row, text, alone in zip(found, SEQUENCES, read_features(made, SEQUENCES), strict=True):
        second = {None: "", "same": text, "rc": reverse_complement(text)}[echo]
        due = hidden_of(made.backbone, text + second)[-len(text) :]
        if head == "cnn":
            # In the order of the sequence, whichever way it was read.
            due = due.flip(0) if echo == "rc" else due
            assert row[len(text) :].isnan().all()
            row = row[: len(text)]
        else:
            due = due[-1] if reading == "last" else due.mean(0)
        assert torch.allclose(row, due, rtol=1e-4, atol=1e-5)
        assert np.allclose(alone, due.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "mlp", "cnn"])
def test_predictions_are_the_same_whatever_is_read_together(head):
    made = predictor(head=head, echo="rc")
    due = predict_outputs(made, SEQUENCES, 1)
    assert due.shape == (4, 3) and len(np.unique(due.round(6), axis=0)) == 4
    for batch_size in (2, 3, "auto"):
        assert np.array_equal(predict_outputs(made, SEQUENCES, batch_size), due)
    assert np.array_equal(predict_outputs(made, SEQUENCES[::-1])[::-1], due)
    with torch.no_grad():
        padded = made(pad_rows([made.tokens(text) for text in SEQUENCES]))
    assert np.allclose(padded.numpy(), due, rtol=1e-4, atol=1e-5)


def test_features_in_place_of_sequences():
    made = predictor(head="cnn")
    features = list(read_features(made, SEQUENCES))
    filled = np.full((4, 20, SMALL.hidden_size), np.nan, dtype=np.float32)
    for row, vectors in zip(filled, features, strict=True):
        row[: len(vectors)] = vectors
    assert np.allclose(predict_outputs(made, filled), predict_outputs(made, SEQUENCES), rtol=1e-5, atol=1e-6)


def test_the_cnn_is_two_convolutions_an_average_and_a_linear_map():
    made = predictor(head="cnn")
    x = torch.from_numpy(next(read_features(made, ["ACGTACCA"])))
    head = made.head
    assert head.first.weight.shape == (64, SMALL.hidden_size, 3) and head.second.weight.shape == (64, 64, 3)

    def convolve(x, layer):
        around = torch.cat([torch.zeros(1, x.shape[1]), x, torch.zeros(1, x.shape[1])])
        rows = [sum(around[i + k] @ layer.weight[:, :, k].T for k in range(3)) for i in range(len(x))]
        return torch.nn.functional.gelu(torch.stack(rows) + layer.bias)

    with torch.no_grad():
        due = convolve(convolve(x, head.first), head.second).mean(0) @ head.last.weight.T + head.last.bias
    assert np.allclose(predict_outputs(made, ["ACGTACCA"])[0], due.numpy(), rtol=1e-4, atol=1e-5)


def test_a_head_depends_on_its_seed_alone():
    heads = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        heads.append(predictor(head="mlp").head.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(heads[0].values(), heads[1].values(), strict=True))


@pytest.mark.parametrize("change", [{"head": "svm"}, {"reading": "first"}, {"echo": "twice"}, {"outputs": 0}])
def test_a_head_that_does_not_exist(change):
    with pytest.raises(UsageError, match=f"^{next(iter(change))}: is "):
        HeadConfig(**{"hidden_size": 8, "outputs": 2, **change})


# --- Adapters --------------------------------------------------------------------------------------------------------

TOKENS = torch.tensor([[2, 7, 8, 9, 10, 7, 7, 10]])


def test_adapters_begin_as_nothing_and_can_be_merged():
    model, plain = random_model(), random_model()
    projections = sum(type(m) is Linear for m in model.model.layers.modules())
    add_lora(model, rank=2, alpha=4.0)
    assert sum(isinstance(m, LoraLinear) for m in model.modules()) == projections == 2 * 2 + 4 + 3 * 3
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(lora_tensors(model))
    with torch.no_grad():
        assert torch.equal(model(TOKENS)[0], plain(TOKENS)[0])
        for name, tensor in lora_tensors(model).items():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
        due = model(TOKENS)[0]
        weight = model.model.layers[0].mamba.in_proj
        by_hand = weight.base.weight + 4.0 / 2 * weight.up @ weight.down
        merge_lora(model)
        assert torch.allclose(model.model.layers[0].mamba.in_proj.weight, by_hand)
        assert not torch.allclose(due, plain(TOKENS)[0], atol=1e-3)
        assert torch.allclose(model(TOKENS)[0], due, rtol=1e-3, atol=1e-4)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_gradients_reach_every_adapter():
    model = random_model()
    add_lora(model, rank=2, alpha=2.0)
    model(TOKENS)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n.endswith("up"))
    assert all(p.grad is None for n, p in model.named_parameters() if not n.endswith(("up", "down")))


def test_without_a_start_token():
    model = random_model(bos_token_id=None)
    made = Predictor(model, HeadConfig(SMALL.hidden_size, 2, echo="same"))
    with torch.no_grad():
        found = made.features(pad_rows([made.tokens("ACG"), made.tokens("T")]))
        due = model(torch.from_numpy(encode("ACGACG")).long()[None])[0][0, 3:].mean(0)
    assert torch.allclose(found[0], due, rtol=1e-4, atol=1e-5)
    assert dataclasses.asdict(made.config)["echo"] == "same"
