"""Pooling and the Embedder: every reading against plain arithmetic on one pass, and rows that never know each other."""

import numpy as np
import pytest
import torch
from toys import random_model

from hybridna_core.errors import GuardError, UsageError
from hybridna_core.model import embedding
from hybridna_core.model.embedding import Embedder
from hybridna_core.model.heads import Pooler, parse_layers, parse_pool, read_rows, row_length, rows_at_once
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.tokenizer import BOS, encode, reverse_complement_ids

MODEL = random_model()
RNG = np.random.default_rng(5)
LAST = len(MODEL.model.layers) + 1


def bases(n):
    return encode("".join(RNG.choice(list("ACGT"), n)))


def depths(tokens, model=MODEL):
    """Vectors at every depth of one pass, block by block: list of (n, hidden) float64."""
    x = model.model.embed_tokens(torch.tensor([tokens]))
    found, state = [x], model.read_layers(torch.tensor([[BOS]]), None, (0,))[1]
    state = type(state).start(model.config, 1)
    for block, before in zip(model.model.layers, state.layers, strict=True):
        x, _ = block(x, before)
        found.append(x)
    found.append(model.model.final_layernorm(x))
    return [x[0].double().numpy() for x in found]


def vectors(items, model=MODEL, pool="mean", **options):
    embedder = Embedder(model, parse_pool(pool), **options)
    return [found for _, found in embedder.embed(enumerate(items))]


def test_layers_are_what_stands_after_each_block():
    ids = bases(50)
    found = depths([BOS, *ids.tolist()])
    layers = tuple(range(LAST + 1))
    (given,) = vectors([ids], layers=layers, pool="per-base")
    assert given.shape == (LAST + 1, 50, 32) and given.dtype == np.float32
    for layer, expected in zip(given, found, strict=True):
        assert np.allclose(layer, expected[1:], atol=1e-5)
    assert np.array_equal(vectors([ids], layers=(LAST, 1))[0], vectors([ids], layers=layers)[0][[LAST, 1]])


@pytest.mark.parametrize("echo", [None, "same", "rc"])
def test_pools_are_plain_arithmetic(echo):
    ids = bases(41)
    copies = [ids] if echo is None else [ids, ids if echo == "same" else reverse_complement_ids(ids)]
    hidden = depths([BOS, *np.concatenate(copies).tolist()])[LAST][-41:]
    expected = {
        "mean": hidden.mean(0), "last": hidden[-1], "max": hidden.max(0), "center:5": hidden[18:23].mean(0),
        "center:6": hidden[17:23].mean(0), "center:41": hidden.mean(0), "center:99": hidden.mean(0),
        "per-base": hidden[::-1] if echo == "rc" else hidden,
    }  # fmt: skip
    for pool, vector in expected.items():
        assert np.allclose(vectors([ids], pool=pool, echo=echo)[0][0], vector, atol=1e-5), pool


def test_pooling_lets_gradients_pass():
    hidden = torch.randn(9, 4, requires_grad=True)
    for kind in ("mean", "last", "max", "center:2"):
        pooler = Pooler(parse_pool(kind), 1, 8)
        pooler.add(hidden[:3], 0)
        pooler.add(hidden[3:], 3)
        (grad,) = torch.autograd.grad(pooler.vectors().sum(), hidden)
        assert grad[0].abs().sum() == 0 and grad.sum().item() == pytest.approx(4.0)
        assert kind != "mean" or torch.allclose(grad[1:8], torch.full((7, 4), 1 / 7))


@pytest.mark.parametrize("pool", ["mean", "per-base"])
def test_batch_size_order_and_neighbours_change_no_bit(pool):
    items = [bases(n) for n in [1, 63, 64, 65, 10, 10, 130, 700, 1100, *range(20, 60, 5)]]
    alone = [vectors([ids], pool=pool, batch_size=1)[0] for ids in items]
    for size in ("auto", 1, 3, 7):
        order = RNG.permutation(len(items))
        found = vectors([items[i] for i in order], pool=pool, batch_size=size)
        assert all(np.array_equal(found[k], alone[i]) for k, i in enumerate(order)), size


def test_rows_are_read_in_the_shape_that_their_length_sets():
    shapes = []

    class Spy:
        config, segment, device = MODEL.config, MODEL.segment, MODEL.device

        def read_layers(self, tokens, state, layers):
            shapes.append(tuple(tokens.shape))
            return MODEL.read_layers(tokens, state, layers)

    items = [bases(n) for n in (5, 6, 100, 7, 2000)]
    list(Embedder(Spy(), parse_pool("mean")).embed(enumerate(items)))
    assert sorted(shapes) == [(1, 1024), (1, 1024), (8, 128), (16, 64)]
    assert (row_length(MODEL.config, 63), row_length(MODEL.config, 64), row_length(MODEL.config, 64, "rc")) == (
        64, 128, 192,
    )  # fmt: skip
    assert [rows_at_once(MODEL, n, size) for n, size in ((64, "auto"), (1024, "auto"), (2048, "auto"), (64, 5))] == [
        16, 1, 1, 5,
    ]  # fmt: skip
    assert rows_at_once(MODEL, 1088, 5) == 1


def test_waiting_ones_come_out_in_order_and_are_few(monkeypatch):
    monkeypatch.setattr(embedding, "AHEAD", 4)
    given = []

    def items():
        for n in [10, 200, 11, 400, 12, 600, *[20] * 30]:
            given.append(n)
            yield n, None if n == 400 else bases(n)

    seen = 0
    for key, found in Embedder(MODEL, parse_pool("mean")).embed(items()):
        assert key == given[seen] and (found is None) == (key == 400)
        seen += 1
        assert len(given) - seen <= 4
    assert seen == 36
    monkeypatch.setattr(embedding, "AHEAD_BYTES", 1000)
    given.clear()
    found = [key for key, _ in Embedder(MODEL, parse_pool("per-base")).embed(items())]
    assert found == given


@pytest.mark.parametrize("pool", ["mean", "last", "max", "per-base"])
def test_average_of_strands_knows_no_strand(pool):
    ids = bases(90)
    one, other = vectors([ids, reverse_complement_ids(ids)], pool=pool)
    if pool == "per-base":
        other = other[:, ::-1]
    found = vectors([ids], pool=pool, average_strands=True)[0]
    assert np.array_equal(found, (one + other) / np.float32(2))
    turned = vectors([reverse_complement_ids(ids)], pool=pool, average_strands=True)[0]
    assert np.array_equal(turned[:, ::-1] if pool == "per-base" else turned, found)


def test_long_sequences():
    model = random_model(max_position_embeddings=65)
    ids = bases(150)
    parts = [ids[:50], ids[50:100], ids[100:]]
    each = vectors(parts, model, "per-base")
    whole = np.concatenate(each, axis=1)
    for pool, expected in (
        ("mean", whole.mean(1)), ("last", whole[:, -1]), ("max", whole.max(1)),
        ("center:30", whole[:, 60:90].mean(1)), ("per-base", whole),
    ):  # fmt: skip
        assert np.allclose(vectors([ids], model, pool, long="windows")[0], expected, atol=1e-5), pool
    # Streaming is the one pass that a model with a longer context makes.
    longer = random_model()
    for pool in ("mean", "center:30"):
        assert np.array_equal(vectors([ids], model, pool, long="stream")[0], vectors([ids], longer, pool)[0])
    assert np.array_equal(vectors([ids[:64]], model, long="windows")[0], vectors([ids[:64]], model, long="stream")[0])


def test_streaming_does_not_depend_on_segments():
    ids = bases(3000)
    whole, _ = read_rows(MODEL, [ids, ids], parse_pool("mean"), rows=2, segment=4000)
    for segment in (64, 100, 1024, 1999):
        (found,) = read_rows(MODEL, [ids], parse_pool("mean"), segment=segment)
        assert np.abs(found - whole).max() <= 1e-5 * np.abs(whole).max()


def test_memory_that_runs_out_halves_the_rows(monkeypatch):
    items, sizes, whole = [bases(10) for _ in range(16)], [], HybridLM.read_layers
    expected = vectors(items)

    def read(model, tokens, state, layers):
        sizes.append(len(tokens))
        if len(tokens) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, tokens, state, layers)

    monkeypatch.setattr(HybridLM, "read_layers", read)
    limit = 3
    assert np.array_equal(vectors(items), expected) and sizes == [16, 8, 4, *[2] * 8]
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        vectors(items)


def test_numbers_that_are_not_finite_name_the_sequence():
    model = random_model()
    model.model.final_layernorm.weight[1] = float("inf")
    with pytest.raises(GuardError, match=r"^seven: the model's output is not finite"):
        list(Embedder(model, parse_pool("mean")).embed([("seven", bases(5))]))


def test_parse_layers():
    config = MODEL.config
    assert parse_layers("-1,2", config) == (4, 2) and parse_layers(" 0 , -2", config) == (0, 3)
    assert parse_layers(-1, config) == (4,) and parse_layers([2, -4], config) == (2, 1)
    for text, words in (("5", "'5' is no layer"), ("-6", "no layer"), ("", "no layer"), ("1.5", "no layer"),
                        ("-1,4", "a layer is named twice; -1 is 4")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            parse_layers(text, config)


def test_parse_pool():
    assert [str(parse_pool(text)) for text in ("mean", "center:12", "per-base")] == ["mean", "center:12", "per-base"]
    for text in ("center", "center:0", "center:N", "center:-1", "center:x", "Mean", ""):
        with pytest.raises(UsageError, match="--pool"):
            parse_pool(text)
