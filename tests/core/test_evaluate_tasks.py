"""Benchmarks from folder to table, on small tasks whose answers are known."""

import csv
import json

import numpy as np
import pytest
from tables import draw, lay_out_task, write_table
from toys import SMALL, random_model

from hybridna_core.checkpoint import save_model
from hybridna_core.commands import evaluate_tasks as core
from hybridna_core.commands.evaluate_predictions import evaluate_predictions
from hybridna_core.commands.evaluate_tasks import evaluate_tasks
from hybridna_core.commands.evaluate_variants import VariantTask
from hybridna_core.commands.finetune import finetune
from hybridna_core.commands.predict import predict
from hybridna_core.data.benchmarks import read_protocol
from hybridna_core.data.genome import open_genome
from hybridna_core.errors import DataError, GuardError, ModelError, SystemFault, UsageError
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.tokenizer import reverse_complement
from hybridna_core.train import tune

QUICK = {"device": "cpu", "epochs": 3, "batch_size": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder that knows nothing yet."""
    return save_model(tmp_path_factory.mktemp("models") / "base", HybridLM(SMALL, seed=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks laid out as GUE's."""
    path = tmp_path_factory.mktemp("gue")
    lay_out_task(path / "mouse" / "2", 64, 24, 24, shortest=20, longest=20)
    lay_out_task(path / "virus" / "covid", 60, 24, 24, classes=3, shortest=20, longest=24)
    return path


def read_table(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


@pytest.fixture(scope="module")
def done(base, folder, tmp_path_factory):
    """Both tasks by two readings, two rates and two seeds, and the output."""
    output = tmp_path_factory.mktemp("done") / "out"
    summary = evaluate_tasks("gue", folder, output, model=base, echoes=(None, "rc"), rates=(1e-2, 1e-6), seeds=2,
                             compare=True, **QUICK)  # fmt: skip
    return output, summary


def test_a_table_with_baselines_beside(done):
    output, summary = done
    rows = read_table(output / "results.tsv")
    assert {(row["task"], row["method"]) for row in rows if row["model"] == "baseline"} == {
        ("mouse/2", "majority"), ("mouse/2", "GC"), ("mouse/2", "one-hot"), ("mouse/2", "k-mers"),
        ("virus/covid", "majority"), ("virus/covid", "GC"), ("virus/covid", "k-mers"),
    }  # fmt: skip
    ours = {(row["task"], row["method"]): row for row in rows if row["model"] == "base"}
    assert set(ours) == {(task, f"fine-tuned, mean{echo}") for task in ("mouse/2", "virus/covid")
                         for echo in ("", ", echo rc")}  # fmt: skip
    for (task, _), row in ours.items():
        assert row["metric"] == ("mcc" if task == "mouse/2" else "f1") and row["seeds"] == "2" and row["lr"] == "0.01"
        assert float(row["low"]) <= float(row["test"]) <= float(row["high"]) and row["sd"] != "NA"
        assert row["chosen"].startswith("lr of 0.01: ") and "; 1e-06: " in row["chosen"]
        # Without the rate that learns nothing.
        assert float(row["test"]) > 0.6
    # Two tasks, two readings: both rates with the first seed, the best with the second; baselines of two tasks.
    assert summary.trained == 2 * 2 * 3 + 2
    assert {row["test_rows"] for row in rows} == {"24"}
    text = (output / "results.md").read_text()
    assert text.startswith("| task | model |") and text.count("\n") == len(rows) + 2
    assert (output / "results.png").read_bytes().startswith(b"\x89PNG")
    compared = read_table(output / "compare.tsv")
    assert {"HybriDNA-7B", "base", "baseline"} <= {row["model"] for row in compared}
    assert {row["tasks"] for row in compared if row["from"] == "here"} == {"1 of 5", "1 of 1"}
    assert not list((output / "runs").iterdir())


def test_what_is_finished_is_not_done_again(done, base, folder, monkeypatch):
    output, before = done
    table = (output / "results.tsv").read_bytes()

    def never(*_, **__):
        raise AssertionError("done again")

    with monkeypatch.context() as patch:
        patch.setattr(tune, "tune_head", never)
        patch.setattr(core, "run_baselines", never)
        again = evaluate_tasks("gue", folder, output, model=base, echoes=(None, "rc"), rates=(1e-2, 1e-6), seeds=2,
                               compare=True, **QUICK)  # fmt: skip
    assert again.trained == 0 and again.kept and (output / "results.tsv").read_bytes() == table
    assert again.rows == before.rows
    # Another reading adds its rows, and does nothing but them; so does a third seed.
    more = evaluate_tasks(
        "gue", folder, output, model=base, tasks=("covid",), readings=("last",), rates=(1e-2,), **QUICK
    )
    assert more.trained == 1 and len(read_table(output / "results.tsv")) == len(table.splitlines())
    more = evaluate_tasks("gue", folder, output, model=base, tasks=("covid",), rates=(1e-2, 1e-6), seeds=3, **QUICK)
    assert more.trained == 1


def test_numbers_are_those_of_finetune_and_predict(base, folder, tmp_path):
    options = {"model": base, "tasks": ("mouse/2",), "rates": (1e-2,), "baselines": False, **QUICK}
    found = evaluate_tasks("gue", folder, tmp_path / "out", **options)
    # The preset's warm-up of 30 steps is held to a fifth.
    due = finetune(folder / "mouse" / "2", tmp_path / "model", model=base, lr=1e-2, warmup=0.2, task="classification",
                   **QUICK)  # fmt: skip
    assert found.rows[0]["test"] == pytest.approx(due.measures["test_mcc"], abs=1e-12)
    predict(tmp_path / "model", folder / "mouse" / "2" / "test.csv", tmp_path / "p.tsv", device="cpu")
    told = evaluate_predictions(tmp_path / "p.tsv", folder / "mouse" / "2" / "test.csv", tmp_path / "m.tsv")
    assert told.measures["mcc"] == pytest.approx(due.measures["test_mcc"], abs=1e-12)
    assert told.measures["auroc"] == pytest.approx(due.measures["test_auroc"], abs=1e-9)
    assert read_table(tmp_path / "m.tsv")[0]["measure"] == "mcc"


def test_rates_are_tried_on_less(base, folder, tmp_path):
    plan = {"tasks": ("mouse/2",), "rates": (1e-2, 1e-3), "baselines": False, "model": base}
    summary = evaluate_tasks("gue", folder, tmp_path / "o", trial_rows=32, trial_epochs=1, **plan, **QUICK)
    assert summary.trained == 3
    units = [json.loads(path.read_text()) for path in (tmp_path / "o" / "units").glob("*.json")]
    assert sorted((one["facts"]["rows"], one["epochs"], one["steps"]) for one in units) == [
        (32, 1, 2),
        (32, 1, 2),
        (64, 3, 12),
    ]
    limited = evaluate_tasks("gue", folder, tmp_path / "l", limit=20, **{**plan, "rates": ()}, **QUICK)
    assert limited.rows[0]["train_rows"] == 20


def test_a_frozen_probe_keeps_its_vectors(base, folder, tmp_path):
    plan = {"tasks": ("mouse/2",), "model": base, "freeze": True, "baselines": False, "device": "cpu", "epochs": 20}
    summary = evaluate_tasks("gue", folder, tmp_path / "o", head="mlp", rates=(1e-1, 1e-2), **plan)
    assert summary.rows[0]["method"] == "frozen, mlp head, mean" and summary.rows[0]["test"] > 0.3
    assert len(list((tmp_path / "o" / "features").glob("*.npy"))) == 3


def test_e27_shared_sequences(base, tmp_path, caplog):
    task = lay_out_task(tmp_path / "g" / "t", 40, 10, 10)
    first = (task / "train.csv").read_text().splitlines()[1]
    text, label = first.split(",")
    with open(task / "test.csv", "a") as handle:
        handle.write(f"{text},{label}\n{reverse_complement(text)},{label}\n")
    options = {"model": base, "rates": (1e-2,), "baselines": False, **QUICK, "epochs": 1}
    summary = evaluate_tasks("gue", tmp_path / "g", tmp_path / "o", **options)
    assert summary.shared == 2 and summary.rows[0]["shared"] == 2 and "2 of 12 sequences" in caplog.text
    with pytest.raises(DataError, match="2 of 12 sequences, or their reverse complements, stand in training"):
        evaluate_tasks("gue", tmp_path / "g", tmp_path / "o2", strict=True, **options)


def test_e28_what_has_no_value_has_a_reason(base, tmp_path):
    task = lay_out_task(tmp_path / "g" / "t", 40, 10, 10)
    rows = [(text, "1") for text, _ in draw(8, 9)]
    write_table(task / "test.csv", rows)
    summary = evaluate_tasks("gue", tmp_path / "g", tmp_path / "o", model=base, rates=(1e-2,), **QUICK)
    assert {row["test"] for row in summary.rows} == {None}
    assert {row["why"] for row in summary.rows} == {"one class in the test rows"}
    assert {row["test"] for row in read_table(tmp_path / "o" / "results.tsv")} == {"NA"}
    assert "NA (one class in the test rows)" in (tmp_path / "o" / "results.md").read_text()


def test_validation_rows_without_the_measure(base, tmp_path):
    """The last weights are measured on the test rows; a rate cannot be chosen."""
    task = lay_out_task(tmp_path / "g" / "t", 40, 10, 10)
    write_table(task / "dev.csv", [(text, "1") for text, _ in draw(8, 9)])
    plan = {"model": base, "baselines": False, **QUICK, "epochs": 1}
    one = evaluate_tasks("gue", tmp_path / "g", tmp_path / "o", rates=(1e-2,), **plan).rows[0]
    assert one["test"] is not None and (one["valid"], one["why"]) == (None, "")
    two = evaluate_tasks("gue", tmp_path / "g", tmp_path / "o", rates=(1e-2, 1e-3), readings=("last",), **plan).rows[0]
    assert (two["test"], two["why"]) == (None, "the validation rows have no mcc to choose a rate by")


def test_a_row_that_cannot_be_read_is_left_out_and_told_of_once(base, tmp_path, caplog):
    rows = [*((*row, "train") for row in draw(40, 0)), ("AC-T", "0", "train")]
    rows += [(*row, name) for name in ("val", "test") for row in draw(10, len(name))]
    path = write_table(tmp_path / "a.tsv", rows, ("sequence", "label", "split"))
    summary = evaluate_tasks("table", path, tmp_path / "o", model=base, split_column="split", rates=(1e-2,),
                             baselines=False, **{**QUICK, "epochs": 1})  # fmt: skip
    assert summary.rows[0]["train_rows"] == 40 and summary.rows[0]["test"] is not None
    assert caplog.text.count("a.tsv:42: '-' inside a sequence at position 3; marked bad_letters") == 1


def test_two_models_of_one_name_are_two_rows(folder, tmp_path):
    plan = {"tasks": ("mouse/2",), "rates": (1e-2,), "baselines": False, **QUICK, "epochs": 1}
    found = []
    for seed in (1, 2, 1):
        path = tmp_path / str(seed)
        path.mkdir(exist_ok=True)
        model = save_model(path / "model", HybridLM(SMALL, seed=seed), force=True)
        found.append(evaluate_tasks("gue", folder, tmp_path / "o", model=model, **plan).rows[0]["model"])
    assert found[0] == found[2] == "model" and found[1].startswith("model:") and len(found[1]) == 18
    rows = read_table(tmp_path / "o" / "results.tsv")
    assert sorted(row["model"] for row in rows) == sorted(found[:2])
    # A model that was never saved is known by what it holds.
    made = [evaluate_tasks("gue", folder, tmp_path / "p", model=HybridLM(SMALL, seed=seed), **plan) for seed in (3, 4)]
    assert [one.trained for one in made] == [1, 1]


@pytest.mark.parametrize("name", ["virus", "virus/covid"])
def test_settings_go_by_the_folder_that_is_named(base, folder, tmp_path, name):
    plan = {"model": base, "baselines": False, "rates": (1e-2,), "device": "cpu", "batch_size": 32, "epochs": 1}
    row = evaluate_tasks("gue", folder / name, tmp_path / "o", **plan).rows[0]
    assert (row["task"], row["metric"], row["group"]) == ("covid", "f1", "covid variants")


def test_a_rate_that_ends_in_nothing_is_left(base, folder, tmp_path, monkeypatch):
    trained = tune.tune_head

    def fail(model, config, *rest, **options):
        if config.lr > 1:
            raise GuardError("the loss is not finite")
        return trained(model, config, *rest, **options)

    monkeypatch.setattr(tune, "tune_head", fail)
    plan = {"tasks": ("mouse/2",), "model": base, "baselines": False, **QUICK}
    summary = evaluate_tasks("gue", folder, tmp_path / "o", rates=(10.0, 1e-2), **plan)
    assert summary.rows[0]["lr"] == 1e-2 and "10: no" in summary.rows[0]["chosen"]
    summary = evaluate_tasks("gue", folder, tmp_path / "o", rates=(10.0, 20.0), readings=("last",), **plan)
    assert summary.rows[0]["test"] is None and summary.rows[0]["why"] == "no rate came to an end"


def test_regression_tables(base, tmp_path):
    rows = [(text, text.count("A") / len(text)) for text, _ in draw(200, 2, shortest=20, longest=20)]
    path = write_table(tmp_path / "activity.tsv", rows)
    summary = evaluate_tasks("table", path, tmp_path / "o", model=base, task="regression", rates=(1e-2,), **QUICK)
    found = {row["method"]: row for row in summary.rows}
    assert set(found) == {"mean", "GC", "one-hot", "k-mers", "fine-tuned, mean"}
    assert found["mean"]["test"] is None and found["mean"]["why"] == "the predictions are all the same"
    assert found["k-mers"]["test"] > 0.95 and found["fine-tuned, mean"]["test"] > 0.5


def test_errors_of_numbers_are_in_their_own_unit(base, tmp_path):
    rows = [(text, 100 + 40 * text.count("A") / len(text)) for text, _ in draw(96, 3)]
    for name, part in (("train", rows[:64]), ("dev", rows[64:80]), ("test", rows[80:])):
        write_table(tmp_path / f"{name}.csv", part)
    options = {"model": base, "task": "regression", "metric": "mse", **QUICK, "epochs": 1}
    summary = evaluate_tasks("table", tmp_path, tmp_path / "o", rates=(1e-2,), **options)
    due = finetune(tmp_path, None, lr=1e-2, **options).measures
    found = {row["method"]: row for row in summary.rows}
    ours = found["fine-tuned, mean"]
    assert (ours["test"], ours["valid"]) == pytest.approx((due["test_mse"], due["valid_mse"]), rel=1e-9)
    assert ours["low"] < ours["test"] < ours["high"]
    mean = np.mean([value for _, value in rows[:64]])
    assert found["mean"]["test"] == pytest.approx(np.mean([(value - mean) ** 2 for _, value in rows[80:]]), rel=1e-4)


def test_bend_and_lrb(base, tmp_path):
    random = np.random.default_rng(3)
    pieces = [text for text, _ in draw(120, 3, shortest=30, longest=30)]
    contig = "".join(pieces)
    (tmp_path / "g.fa").write_text(f">chr1\n{contig}\n")
    bend, lrb = tmp_path / "bend", tmp_path / "lrb"
    bend.mkdir()
    rows = [("chr1", 30 * i, 30 * i + 30, ("train", "train", "valid", "test")[i // 2 % 4], "0" if i % 2 else "1")
            for i in range(120)]  # fmt: skip
    write_table(bend / "histone_modification.bed", rows, ("chromosome", "start", "end", "split", "label"))
    plan = {"fasta_ref": tmp_path / "g.fa", "model": base, "device": "cpu"}
    summary = evaluate_tasks("bend", bend, tmp_path / "ob", epochs=3, batch_size=8, rates=(1e-2,), **plan)
    ours = [row for row in summary.rows if row["model"] == "base"]
    assert [row["method"] for row in ours] == ["frozen, cnn head, every base"] and ours[0]["test"] > 0.8
    (lrb / "variant_effect_causal_eqtl").mkdir(parents=True)
    (lrb / "variant_effect_pathogenic").mkdir()
    rows = []
    for number, place in enumerate(range(40, 3500, 30)):
        ref = contig[place]
        alt = random.choice([base for base in "ACGT" if base != ref])
        rows.append(("chr1", place + 1, ref, alt, int(alt in "AT"), ("Liver", "Lung")[number % 2],
                     ("train", "test")[number % 3 == 0]))  # fmt: skip
    header = ("CHROM", "POS", "REF", "ALT", "label", "tissue", "split")
    write_table(lrb / "variant_effect_causal_eqtl" / "All_Tissues.csv", rows, header)
    write_table(lrb / "variant_effect_pathogenic" / "vep_pathogenic_non_coding.csv",
                [(*row[:4], row[4], "test") for row in rows], (*header[:4], "INT_LABEL", "split"))  # fmt: skip
    summary = evaluate_tasks("lrb", lrb, tmp_path / "ol", epochs=30, window=8, rates=(1e-2,), **plan)
    found = {(row["task"], row["method"], row["metric"]): row for row in summary.rows}
    zero = [key for key in found if key[1].startswith("zero-shot")]
    assert len(zero) == 8 and {key[2] for key in zero} == {"auroc", "auprc"}
    head = found["causal_eqtl", "frozen, mlp head, both alleles", "auroc"]
    assert head["test"] > 0.7 and head["train_rows"] + head["valid_rows"] + head["test_rows"] == len(rows)
    # OMIM has no training rows, and its metric is AUPRC.
    assert not [key for key in found if key[0] == "pathogenic_omim" and not key[1].startswith("zero-shot")]
    path = lrb / "variant_effect_causal_eqtl" / "All_Tissues.csv"
    write_table(path, [(*row[:6], "train") for row in rows], header)
    with pytest.raises(DataError, match=r"All_Tissues\.csv: no row is for the test"):
        evaluate_tasks("lrb", lrb, tmp_path / "o4", window=8, **plan)
    with pytest.raises(UsageError, match="--head: the cnn head reads every base's vector"):
        evaluate_tasks("lrb", lrb, tmp_path / "o6", head="cnn", **plan)
    wrong = [(*row[:2], "ACGT"["CGTA".index(row[2])], *row[3:]) for row in rows]
    write_table(lrb / "variant_effect_causal_eqtl" / "All_Tissues.csv", wrong, header)
    with pytest.raises(DataError, match="are not those of this genome"):
        evaluate_tasks("lrb", lrb, tmp_path / "o3", **plan)


@pytest.mark.parametrize("window, left, right", [(60, 30, 29), (120, 59, 58), (128, 59, 58)])
def test_windows_fit_what_the_model_reads(tmp_path, caplog, window, left, right):
    """With the longer allele, of ten bases; 127 are read at once."""
    contig = "".join(np.random.default_rng(1).choice(list("ACGT"), 400))
    (tmp_path / "g.fa").write_text(f">chr1\n{contig}\n")
    longer = contig[200] + "A" * 9
    rows = [("chr1", 201, contig[200], longer, 1, "train"), ("chr1", 221, contig[220:230], contig[220], 1, "train"),
            ("chr1", 241, contig[240], "ACGT"["CGTA".index(contig[240])], 0, "valid")]  # fmt: skip
    rows.append((*rows[-1][:5], "test"))
    path = write_table(tmp_path / "v.csv", rows, ("CHROM", "POS", "REF", "ALT", "label", "split"))
    with open_genome(tmp_path / "g.fa") as genome:
        small = random_model(max_position_embeddings=128)
        task = VariantTask("x", path, read_protocol("lrb", "causal_eqtl"), genome, small, window, None)
        pairs = {one.alt: task._windows(one) for some in task.variants.values() for one in some}
        assert pairs[longer] == (contig[200 - left : 201 + right], contig[200 - left : 200] + longer
                                 + contig[201 : 201 + right])  # fmt: skip
        assert max(len(text) for pair in pairs.values() for text in pair) <= 127
        width = min(window, 127)
        assert {len(text) for text in pairs[rows[2][3]]} == {width}
        assert ("this model reads 127 bases at once" in caplog.text) == (window > 127)
        rows[0] = (*rows[0][:3], "A" * 128, 1, "train")
        write_table(path, rows, ("CHROM", "POS", "REF", "ALT", "label", "split"))
        with pytest.raises(DataError, match=r"v\.csv:2: an allele is longer than the 127 bases"):
            VariantTask("x", path, task.protocol, genome, small, window, None)


def test_zero_shot_is_the_score_of_score_variants(tmp_path):
    """AUROC of |HD_LLR| against labels made of it is 1, and of -HD_LLR what scikit-learn says."""
    from sklearn.metrics import roc_auc_score

    from hybridna_core.commands.score_variants import score_variants

    random = np.random.default_rng(1)
    contig = "".join(random.choice(list("ACGT"), 400))
    (tmp_path / "g.fa").write_text(f">chr1\n{contig}\n")
    model = random_model()
    places = list(range(100, 300, 8))
    alts = ["ACGT"["CGTA".index(contig[place])] for place in places]
    vcf = "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=400>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    lines = [f"chr1\t{p + 1}\t.\t{contig[p]}\t{a}\t.\t.\t.\n" for p, a in zip(places, alts, strict=True)]
    (tmp_path / "v.vcf").write_text(vcf + "".join(lines))
    score_variants(tmp_path / "v.vcf", tmp_path / "g.fa", tmp_path / "s.vcf", model=model, window=64)
    text = [line for line in (tmp_path / "s.vcf").read_text().splitlines() if line[0] != "#"]
    llr = np.array([float(line.split("HD_LLR=")[1].split(";")[0]) for line in text])
    label = (np.abs(llr) > np.median(np.abs(llr))).astype(int)
    folder = tmp_path / "lrb" / "variant_effect_pathogenic"
    folder.mkdir(parents=True)
    rows = [("chr1", p + 1, contig[p], a, y, "test") for p, a, y in zip(places, alts, label, strict=True)]
    write_table(folder / "vep_pathogenic_coding.csv", rows, ("CHROM", "POS", "REF", "ALT", "INT_LABEL", "split"))
    summary = evaluate_tasks(
        "lrb", tmp_path / "lrb", tmp_path / "o", fasta_ref=tmp_path / "g.fa", model=model, window=64
    )
    found = {(row["method"], row["metric"]): row["test"] for row in summary.rows}
    assert found["zero-shot, |HD_LLR|", "auroc"] == pytest.approx(1)
    assert found["zero-shot, -HD_LLR", "auroc"] == pytest.approx(roc_auc_score(label, -llr))


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A transformers folder: a small BERT with random weights and a token per base."""
    transformers = pytest.importorskip("transformers")
    import torch

    folder = tmp_path_factory.mktemp("peer") / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "c", "g", "t",
                                                 "##a", "##c", "##g", "##t"]))  # fmt: skip
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=13, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=64)  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    return folder


def test_other_models_by_the_same_protocol(peer, folder, tmp_path):
    from hybridna_core.hf_peer import Peer

    plan = {"model": f"hf:{peer}", "device": "cpu", "tasks": ("mouse/2",), "baselines": False, "epochs": 30}
    summary = evaluate_tasks("gue", folder, tmp_path / "o", rates=(1e-1,), **plan)
    row = summary.rows[0]
    assert (row["model"], row["method"]) == ("bert", "frozen, linear head, mean") and row["test"] > 0.3
    one = Peer(f"hf:{peer}", device="cpu")
    together = one.embed(["ACGTAC", "AC", "ACGTACGTACG"], batch_size=3)
    for reading in ("mean", "last"):
        together = one.embed(["ACGTAC", "AC", "ACGTACGTACG"], reading, batch_size=3)
        alone = np.concatenate([one.embed([text], reading) for text in ("ACGTAC", "AC", "ACGTACGTACG")])
        np.testing.assert_allclose(together, alone, atol=1e-5)
    with pytest.raises(UsageError, match="hf:"):
        evaluate_tasks("gue", folder, tmp_path / "o2", echoes=("rc",), **plan)
    (tmp_path / "bend").mkdir()
    rows = [("chr1", 0, 30, "train", "0"), ("chr1", 0, 30, "test", "1")]
    write_table(tmp_path / "bend" / "histone_modification.bed", rows, ("chromosome", "start", "end", "split", "label"))
    (tmp_path / "g.fa").write_text(">chr1\n" + "ACGT" * 20 + "\n")
    with pytest.raises(UsageError, match="give --head linear or mlp"):
        evaluate_tasks("bend", tmp_path / "bend", tmp_path / "o3", model=f"hf:{peer}", fasta_ref=tmp_path / "g.fa")
    with pytest.raises(DataError, match="this model reads 64"):
        one.embed(["ACGT" * 20])
    # BERT's tokenizer gives up on words of over 100 letters.
    with pytest.raises(DataError, match="its tokenizer does not know"):
        one.embed(["ACGT" * 30])


def test_other_models_that_do_not_do(peer, tmp_path):
    from hybridna_core.hf_peer import Peer

    with pytest.raises(SystemFault, match=r"no config\.json"):
        Peer(f"hf:{tmp_path}")
    config = json.loads((peer / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Evil"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ModelError, match="wants to run Python code of its own"):
        Peer(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "nothing_known"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        Peer(f"hf:{tmp_path}")


def test_outputs_and_options(base, folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="is no folder of an evaluation"):
        evaluate_tasks("gue", folder, tmp_path / "mine", model=base)
    for options, words in (
        ({"readings": ("men",)}, "--reading"), ({"echoes": ("both",)}, "--echo"), ({"rates": (0.0,)}, "--lr"),
        ({"seeds": 0}, "--seeds"), ({"rates": (1.0, 1.0)}, "twice"), ({"tasks": ("x",)}, "--tasks"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            evaluate_tasks("gue", folder, tmp_path / "o", model=base, **options)
    assert not (tmp_path / "o").exists()
    with pytest.raises(DataError, match="holds no task"):
        evaluate_tasks("lrb", folder, tmp_path / "o", model=base)


def test_e29_ids_that_do_not_match(tmp_path):
    labels = write_table(
        tmp_path / "l.tsv", [("A", "ACGT", 0), ("B", "ACGG", 1), ("C", "AGGG", 1)], ("name", "sequence", "label")
    )

    def judge(rows, header=("name", "p_0", "p_1"), task="classification"):
        predictions = write_table(tmp_path / "p.tsv", rows, header)
        return evaluate_predictions(predictions, labels, tmp_path / "m.tsv", task=task, force=True)

    good = [("C", 0.2, 0.8), ("A", 0.9, 0.1), ("B", 0.4, 0.6)]
    assert judge(good).measures["accuracy"] == 1
    with pytest.raises(DataError, match=r"1 of 3 predictions .*, 1 of 3 labels no prediction \(the first: D, C"):
        judge([("D", 0.2, 0.8), *good[1:]])
    with pytest.raises(DataError, match="0 of 2 predictions have no label, 1 of 3 labels"):
        judge(good[:2])
    with pytest.raises(DataError, match="stands there twice"):
        judge([*good, good[0]])
    with pytest.raises(DataError, match=r"p\.tsv:2: 'nan' is no finite number"):
        judge([("C", "nan", 0.8), *good[1:]])
    assert judge([("C", 1), ("A", 0), ("B", 0)], ("name", "prediction")).measures["accuracy"] == pytest.approx(2 / 3)
    flat = judge([(name, 3.5) for name in "ABC"], ("name", "prediction"), task="regression")
    assert flat.measures["pearson"] is None and flat.why["pearson"] == "the predictions are all the same"
    assert flat.measures["mse"] > 0
    same = write_table(tmp_path / "l.tsv", [(name, "ACGT", 1) for name in "ABC"], ("name", "sequence", "label"))
    found = evaluate_predictions(
        write_table(tmp_path / "p.tsv", good, ("name", "p_0", "p_1")), same, tmp_path / "n.tsv"
    )
    assert found.measures["auroc"] is None and found.why["auroc"] == "one class in the test rows"
