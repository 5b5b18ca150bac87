"""How often contigs were read, windows without bases, weights in the loss, and runs that leave bases out."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from genome_files import put, warnings_of
from runs import TINY_RUN, lay_out, outcome
from toys import SMALL, markov_model, random_model

from hybridna_core.commands.pretrain import pretrain
from hybridna_core.data import store as store_module
from hybridna_core.data.corpus import Window
from hybridna_core.errors import DataError, Stopped
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.run_config import OptimConfig, read_run
from hybridna_core.tokenizer import BOS, encode
from hybridna_core.train.corpora import make_corpora, open_species, places_of
from hybridna_core.train.ledger import count_places
from hybridna_core.train.loop import count_bases, loss_sum, stack_weights, train_step, with_start
from hybridna_core.train.optim import make_optimizer
from hybridna_core.train.snapshots import find_snapshot, save_snapshot

FEW = ["stage.0.steps=6", "stage.1.steps=2"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill_at(step, error=RuntimeError):
    def progress(done, total, note=""):
        if done == step:
            raise error("killed")

    return progress


# --- The ledger ------------------------------------------------------------------------------------------------------


def ledger_of(folder):
    header, *rows = (line.split("\t") for line in (Path(folder) / "ledger.tsv").read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_ledger_counts_every_window(tmp_path):
    path = lay_out(tmp_path)
    (tmp_path / "bee.fa").write_text((tmp_path / "bee.fa").read_text() + ">tail\n" + "ACGTN" * 8 + "\n")
    pretrain(path, device="cpu", set=FEW)
    run = read_run(path, FEW)
    places = list(places_of(run, make_corpora(run, open_species(run)), 0, 8))
    assert len(places) == 6 * 4 + 2 * 2
    rows = ledger_of(tmp_path / "out")
    assert [(r["species"], r["contig"], r["train_bases"]) for r in rows] == [
        ("bug", "c1", "3000"), ("bug", "c2", "1100"), ("bee", "c1", "1500"), ("bee", "tail", "32")
    ]  # fmt: skip
    for row in rows:
        mine = [p for p in places if (p.species, p.contig) == (row["species"], row["contig"])]
        bases = sum(p.end - p.start for p in mine)
        assert (int(row["windows"]), int(row["bases"])) == (len(mine), bases)
        assert row["passes"] == f"{bases / int(row['train_bases']):.4f}"
    assert rows[-1]["windows"] == "0" and sum(int(r["bases"]) for r in rows) == 6 * 4 * 63 + 2 * 2 * 127
    assert (tmp_path / "out" / "ledger.tsv").read_bytes() == (tmp_path / "out" / "model" / "ledger.tsv").read_bytes()


def test_steps_may_be_replayed_in_parts(tmp_path):
    path = lay_out(tmp_path)
    run = read_run(path)
    corpora = make_corpora(run, open_species(run))
    whole, parts = {}, {}
    count_places(whole, places_of(run, corpora, 0, 20))
    for first, last in ((0, 3), (3, 14), (14, 14), (14, 17), (17, 99)):
        count_places(parts, places_of(run, corpora, first, last))
    assert whole == parts and sum(n for one in whole.values() for n, _ in one.values()) == 14 * 4 + 6 * 2
    # Places are those of the windows.
    assert [p for p in places_of(run, corpora, 13, 15)] == [corpora[0].window(i)[:5] for i in range(52, 56)] + [
        corpora[1].window(i)[:5] for i in range(2)
    ]


def test_a_ledger_goes_on_where_a_run_was_killed(tmp_path):
    whole, killed = lay_out(tmp_path / "a"), lay_out(tmp_path / "b")
    pretrain(whole, device="cpu", set=[*FEW, "save.every=3"])
    for step in (2, 5, 7):
        with pytest.raises(RuntimeError):
            pretrain(killed, device="cpu", set=[*FEW, "save.every=3"], progress=kill_at(step))
    pretrain(killed, device="cpu", set=[*FEW, "save.every=3"])
    assert outcome(tmp_path / "a" / "out") == outcome(tmp_path / "b" / "out")


def test_a_ledger_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    path = lay_out(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ledger.partial").mkdir()
    summary = pretrain(path, device="cpu", set=FEW)
    assert "could not be written" in warnings_of(caplog, "ledger")[0]
    assert len(ledger_of(summary.output)) == 3


def test_a_ledger_of_very_many_contigs_comes_back(tmp_path):
    model = HybridLM(SMALL, seed=0)
    optimizer = make_optimizer(model, OptimConfig())
    ledger = {"bug": {f"scaffold_{i:07}": [i, 63 * i] for i in range(200_000)}}
    position = {"step": 1, "seen": {"bug": 1}, "ledger": ledger, "run": {}}
    path = save_snapshot(tmp_path, model, optimizer, position, keep=2)
    assert (path / "position.json").stat().st_size > 8 * 2**20
    assert find_snapshot(tmp_path) == (path, position)


def test_the_loaders_share_is_logged(tmp_path):
    pretrain(lay_out(tmp_path), device="cpu", set=FEW)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    shares = [entry["loader_share"] for entry in lines if "bits_per_base" in entry]
    assert shares and all(0 < share < 0.5 for share in shares)


# --- Weights in the loss ---------------------------------------------------------------------------------------------

TABLE = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]])


def test_a_weighted_loss_by_hand():
    tokens = with_start(encode("ACNT")[None], BOS)
    weights = torch.tensor([[9.0, 0.5, 2.0, 7.0, 0.0]])
    total, count = loss_sum(markov_model(TABLE, start=TABLE[0]), tokens, weights)
    # Start and N weigh nothing, whatever stands there: A after the start 0.1, C after A 0.2.
    assert float(total) == pytest.approx(-(0.5 * math.log(0.1) + 2 * math.log(0.2)), rel=1e-5) and count == 2.5


def test_equal_weights_change_nothing_but_the_unit():
    model, tokens = random_model(), with_start(encode("ACGTACGNTA")[None], BOS)
    plain, bases = loss_sum(model, tokens)
    total, count = loss_sum(model, tokens, torch.full(tokens.shape, 0.25))
    assert float(total) == pytest.approx(0.25 * float(plain), rel=1e-6) and count == 0.25 * bases


def windows(count, length, seed=0):
    random = np.random.default_rng(seed)
    return [
        Window("x", "c", 0, length, "+", random.integers(7, 12, length).astype(np.uint8),
               random.choice([0.0, 0.25, 1.0], length).astype(np.float32))
        for _ in range(count)
    ]  # fmt: skip


def test_weights_stand_beside_their_bases():
    found = windows(3, 5)
    assert stack_weights(found, BOS).shape == (3, 6) and (stack_weights(found, BOS)[:, 0] == 0).all()
    assert np.array_equal(stack_weights(found, None).numpy(), np.stack([w.weights for w in found]))
    assert stack_weights([w._replace(weights=None) for w in found], BOS) is None


def test_splitting_a_weighted_batch_changes_nothing():
    found = windows(6, 40)
    tokens, weights = with_start(np.stack([w.ids for w in found]), BOS), stack_weights(found, BOS)
    # By hand: the sum of weighted terms over the sum of all weights, not a mean of means.
    model = HybridLM(SMALL, seed=0)
    total, count = loss_sum(model, tokens, weights)
    (total / count).backward()
    total = total.item()
    due = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert count == pytest.approx(count_bases(tokens, weights))
    for microbatch in (1, 41, 3 * 41, 10**6):
        model = HybridLM(SMALL, seed=0)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        result = train_step(model, optimizer, tokens, weights, lr=1.0, clip=1e9, microbatch_tokens=microbatch)
        assert result.bits == pytest.approx(total / count / math.log(2), rel=1e-6) and result.bases == count
        for name, parameter in model.named_parameters():
            assert torch.allclose(before[name] - parameter.detach(), due[name], rtol=1e-3, atol=1e-6), name


def test_a_batch_that_weighs_nothing_moves_nothing():
    tokens = with_start(encode("ACGT")[None], BOS)
    model = HybridLM(SMALL, seed=0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    result = train_step(model, optimizer, tokens, torch.zeros(1, 5), lr=1.0, clip=1.0, microbatch_tokens=99)
    assert result.bits == 0 and all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_bases_of_weight_0_teach_nothing(tmp_path):
    # All of bee is in lower case: with weight 0 its letters but not its length are without effect on the loss.
    found = []
    for name in ("a", "b"):
        path = lay_out(tmp_path / name)
        text = (tmp_path / name / "bee.fa").read_text().lower()
        (tmp_path / name / "bee.fa").write_text(text if name == "a" else text.upper().replace(">C", ">c"))
        pretrain(path, device="cpu", set=[*FEW, "mixture.soft_masked_weight=0"])
        found.append((tmp_path / name / "out" / "model" / "model.safetensors").read_bytes())
    assert found[0] != found[1]


# --- What is left out ------------------------------------------------------------------------------------------------


def test_exclude_bed_of_the_command(tmp_path):
    path = lay_out(tmp_path)
    bed = put(tmp_path, b"c1\t0\t1400\n", "x.bed")
    plan = pretrain(path, device="cpu", dry_run=True, exclude_bed=bed)
    assert [s.bases for s in plan.species] == [4100 - 1400, 100]
    few = ["stage.0.steps=2", "stage.1.steps=1", "mixture.max_passes=1e9"]
    with pytest.raises(Stopped), pytest.MonkeyPatch.context():
        pretrain(path, device="cpu", exclude_bed=bed, set=few, progress=stop_at(1))
    with pytest.raises(DataError, match="changed since the run began"):
        pretrain(path, device="cpu", set=few)
    pretrain(path, device="cpu", exclude_bed=bed, set=few)
    run = read_run(path, few)
    species = open_species(run, exclude_bed=bed)
    places = list(places_of(run, make_corpora(run, species), 0, 3))
    assert not [p for p in places if p.contig == "c1" and p.start < 1400]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exclude_bed"] == bed


def stop_at(step):
    import signal

    def progress(done, total, note=""):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


def test_e15_changed_genomes_need_new_data(tmp_path, caplog):
    path = lay_out(tmp_path)
    with pytest.raises(Stopped):
        pretrain(path, device="cpu", set=FEW, progress=stop_at(3))
    genome = tmp_path / "bee.fa"
    # The same content, of another time: nothing changed.
    os.utime(genome, ns=(1, os.stat(genome).st_mtime_ns + 10**9))
    with pytest.raises(Stopped):
        pretrain(path, device="cpu", set=FEW, progress=stop_at(5))
    genome.write_text(genome.read_text().replace("A", "C", 5))
    with pytest.raises(DataError) as caught:
        pretrain(path, device="cpu", set=FEW)
    assert caught.value.exit_code == 3 and "--new-data" in str(caught.value)
    pretrain(path, device="cpu", set=FEW, new_data=True)
    assert "going on with what they are now" in warnings_of(caplog, "new-data")[0]
    assert sum(int(row["windows"]) for row in ledger_of(tmp_path / "out")) == 6 * 4 + 2 * 2


def test_e14_damage_stops_a_run_and_the_last_snapshot_stands(tmp_path):
    path = lay_out(tmp_path)
    with pytest.raises(Stopped):
        pretrain(path, device="cpu", set=FEW, progress=stop_at(3))
    packed = tmp_path / "bee.fa.packed"
    raw = bytearray(packed.read_bytes())
    raw[store_module.HEADER_BYTES + 100] ^= 4
    packed.write_bytes(raw)
    with pytest.raises(
        DataError, match=r"bee.fa.packed: packed bases are damaged in the block at byte 4,096"
    ) as caught:
        pretrain(path, device="cpu", set=FEW)
    assert caught.value.exit_code == 3
    assert [p.name for p in (tmp_path / "out" / "snapshots").iterdir()] == ["step-000000003"]
    packed.unlink()
    whole = lay_out(tmp_path / "whole")
    pretrain(whole, device="cpu", set=FEW)
    pretrain(path, device="cpu", set=FEW)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole" / "out")


def test_a_dry_run_packs_nothing(tmp_path, monkeypatch, caplog):
    path = lay_out(tmp_path, TINY_RUN)
    plan = pretrain(path, device="cpu", dry_run=True)
    assert not list(tmp_path.glob("*.packed"))
    monkeypatch.setattr(store_module, "SCAN_LIMIT", 100)
    monkeypatch.setattr(store_module.Store, "packed", None)
    assert pretrain(path, device="cpu", dry_run=True).species == plan.species
    assert warnings_of(caplog, "store") == [
        f"{tmp_path}/{name}.fa: not packed yet; its {bases} bases are all counted as known"
        for name, bases in (("bug", "5,000"), ("bee", "1,500"))
    ]
