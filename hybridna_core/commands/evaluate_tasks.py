"""Benchmarks of labelled sequences: every task by every reading, rate and seed, with simple baselines beside.

folder -> tasks -> rows, labels -> baselines; rates on the validation rows -> seeds -> test rows -> table, picture
"""

import dataclasses
import hashlib
import logging
import math
import time
from typing import NamedTuple

import numpy as np

from hybridna_core.checkpoint import choose_device, load_model
from hybridna_core.commands.evaluate_variants import VariantTask
from hybridna_core.commands.finetune import fingerprint_run
from hybridna_core.data.benchmarks import BENCHMARKS, find_tasks, read_protocol, read_published, read_tables
from hybridna_core.data.genome import open_genome
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.labelled import Columns, count_shared, encode_labels, learn_scheme, mark_rows, usable
from hybridna_core.data.writers import open_output
from hybridna_core.errors import DataError, GuardError, UsageError
from hybridna_core.hf_peer import Peer, is_peer
from hybridna_core.model.heads import check_echo, longest_input
from hybridna_core.model.readout import HeadConfig, Predictor
from hybridna_core.scoring import is_name
from hybridna_core.sequence_baselines import run_baselines
from hybridna_core.task_files import identify
from hybridna_core.task_metrics import choose_metric, interval, is_better, measure_one
from hybridna_core.task_report import BASELINE, compare_groups, explain_nothing, write_results
from hybridna_core.task_store import Store
from hybridna_core.train.features import cached_features
from hybridna_core.tune_config import TuneConfig

log = logging.getLogger("hybridna")


class EvaluationSummary(NamedTuple):
    """What an evaluation came to; `rows` are those of the table, `trained` the trainings done now, `kept` before."""

    benchmark: str
    tasks: int
    trained: int
    kept: int
    shared: int
    output: str
    rows: tuple
    seconds: float

    def to_dict(self):
        return {**self._asdict(), "rows": list(self.rows)}


class Plan(NamedTuple):
    """How tasks are run: every reading with every echo; rates are tried with the first seed, the best one's go on.

    trial_rows, trial_epochs  what rates are tried with; None: all rows, and as many epochs as at the end
    """

    readings: tuple = ("mean",)
    echoes: tuple = (None,)
    rates: tuple = ()
    seeds: int = 1
    seed: int = 0
    trial_rows: int | None = None
    trial_epochs: int | None = None


class Sequences(NamedTuple):
    """A task as it is learned: its rows, what their labels mean, and the digest of all that."""

    name: str
    protocol: object
    scheme: object
    rows: dict
    targets: dict
    shared: int
    digest: str
    metric: str

    def baseline_input(self):
        """The sequences of every set."""
        return {name: [row.sequence for row in rows] for name, rows in self.rows.items()}

    def features(self, runner, reading):
        """Return {set: (n, hidden) float32} of another's model; None where the network itself is read or trained."""
        if not isinstance(runner.model, Peer):
            return None
        return {name: runner.vectors(texts, reading) for name, texts in self.baseline_input().items()}


def evaluate_tasks(
    benchmark, folder, output, *, model="base", fasta_ref=None, tasks=(), readings=("mean",), echoes=(None,), rates=(),
    seeds=1, seed=0, freeze=None, head=None, epochs=None, batch_size=None, metric=None, task="classification",
    sequence_column=None, label_column=(), split_column=None, limit=None, trial_rows=None, trial_epochs=None,
    baselines=True, compare=False, window=1024, strict=False, allow_remote_code=False, rna=False, device="auto",
    precision="auto", rebuild_index=False, allow_missing_eof=False, progress=None,
):  # fmt: skip
    """Run a benchmark's tasks and write a table and a picture of them; return an EvaluationSummary.

    benchmark     gue, bend, lrb, genomic-benchmarks or table
    folder        as the benchmark is published; of `table` a table, or a folder with train, dev and test tables
    output        folder: results.tsv, results.md, results.png, and what was finished, which is not done again
    model         name, folder, loaded model, or hf:FOLDER, a transformers model whose vectors are read frozen
    fasta_ref     genome of BEND's regions and LRB's variants
    tasks         names, or their last parts; all when empty
    readings      of `last` and `mean`; echoes of None, `same` and `rc`: every pair is a row of the table
    rates         learning rates, the best of which on the validation rows is taken for each row; empty: the published
    freeze        None: as the benchmark's protocol has it, like head, epochs, batch_size and metric
    limit         training rows at most
    trial_rows, trial_epochs  what rates are tried with, see Plan
    baselines     also k-mers, bases by place, GC content, the commonest class
    compare       beside the paper's figures
    window        bases around a variant that are read, of lrb
    strict        raise DataError where a test sequence, or its reverse complement, stands in training

    Interrupted, the same call goes on. Another call with the same output adds its rows to the table.
    Raises HybriDNAError kinds.
    """
    started = time.monotonic()
    plan = _check(benchmark, readings, echoes, rates, seeds, seed, trial_rows, trial_epochs, limit)
    found = find_tasks(benchmark, folder, tasks)
    if fasta_ref is not None:
        check_input(fasta_ref, random_access=True)
    elif benchmark in ("bend", "lrb"):
        raise UsageError(f"{benchmark} names places of a genome", where="-f", hint="give -f FASTA")
    columns = Columns(sequence_column, tuple(label_column) or None, split_column)
    reading = {"rebuild_index": rebuild_index, "other_letters": "n", "rna": rna, "allow_missing_eof": allow_missing_eof}
    loaded = _load(model, device, allow_remote_code)
    store = Store(output, benchmark)
    given = {"freeze": freeze, "head": head, "epochs": epochs, "batch_size": batch_size, "metric": metric}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(loaded, Peer):
        if plan.echoes != (None,):
            raise UsageError("is for models that read from left to right", where="--echo", hint="leave it out for hf:")
        given["freeze"] = True
    # GUE's settings go by the last folders, which the user may have named himself.
    places = {name: path.resolve().as_posix() if benchmark == "gue" else name for name, path in found.items()}
    protocols = {name: read_protocol(benchmark, place)._replace(**given) for name, place in places.items()}
    if (isinstance(loaded, Peer) or benchmark == "lrb") and any(one.head == "cnn" for one in protocols.values()):
        what = "the cnn head reads every base's vector, and here there is one of each sequence"
        raise UsageError(what, where="--head", hint="give --head linear or mlp")
    shared, mine = 0, []
    genome = None if fasta_ref is None else open_genome(fasta_ref, **reading)
    try:
        for number, (name, path) in enumerate(found.items()):
            protocol = protocols[name]
            note = f"{name}, {number + 1} of {len(found)}"
            told = None if progress is None else lambda d, t=None, note="", n=note: progress(d, t, note=f"{n} {note}")
            runner = Runner(store, loaded, protocol, plan, precision, device, told)
            if benchmark == "lrb":
                variants = VariantTask(name, path, protocol, genome, loaded, window, limit)
                mine += runner.run_variants(variants)
            else:
                tables = read_tables(benchmark, path, columns=columns, genome=genome, rna=rna, seed=seed, limit=limit)
                kind = _kind_of(benchmark, task, tables["train"])
                longest = (
                    None if isinstance(loaded, Peer) else min(longest_input(loaded.config, e) for e in plan.echoes)
                )
                one = prepare(name, protocol, kind, tables, longest, rna, strict)
                shared += one.shared
                mine += runner.run(one, baselines)
            rows = store.rows()
            write_results(output, rows, compare_groups(rows, read_published(benchmark)) if compare else None)
    finally:
        if genome is not None:
            genome.close()
    return EvaluationSummary(
        benchmark, len(found), store.trained, store.kept, shared, str(output), tuple(mine), time.monotonic() - started
    )


def _check(benchmark, readings, echoes, rates, seeds, seed, trial_rows, trial_epochs, limit):
    """Check options that no file is needed for; return the Plan."""
    if benchmark not in BENCHMARKS:
        raise UsageError(f"is {benchmark!r}, must be one of {', '.join(BENCHMARKS)}", where="benchmark")
    for name in readings:
        if name not in ("last", "mean"):
            raise UsageError(f"is {name!r}, must be last or mean", where="--reading")
    for echo in echoes:
        check_echo(echo)
    for rate in rates:
        if not rate > 0 or not math.isfinite(rate):
            raise UsageError(f"is {rate}, must be above 0", where="--lr")
    for name, value in (("--seeds", seeds), ("--limit", limit), ("--trial-rows", trial_rows),
                        ("--trial-epochs", trial_epochs)):  # fmt: skip
        if value is not None and value < 1:
            raise UsageError(f"is {value}, must be at least 1", where=name)
    for name, values in (("--reading", readings), ("--echo", echoes), ("--lr", rates)):
        if len(set(values)) < len(values):
            raise UsageError("names something twice", where=name)
    return Plan(tuple(readings), tuple(echoes), tuple(rates), seeds, seed, trial_rows, trial_epochs)


def _load(model, device, allow_remote_code):
    if is_peer(model):
        return Peer(model, device=device, allow_remote_code=allow_remote_code)
    return load_model(model, device=device) if is_name(model) else model


def _kind_of(benchmark, task, table):
    """Regions of BEND have several labels each; all else says itself, or has classes."""
    if benchmark == "bend":
        return "multilabel"
    return task if benchmark == "table" else "classification"


def prepare(name, protocol, kind, tables, longest, rna, strict):
    """Mark what cannot be read, learn what labels mean, count what stands in training and test; return Sequences."""
    tables = {part: mark_rows(table, longest, rna) for part, table in tables.items()}
    rows = {part: usable(table) for part, table in tables.items()}
    scheme = learn_scheme(kind, tables["train"], rows["train"])
    targets = {part: encode_labels(scheme, tables[part], rows[part]) for part in rows}
    shared = count_shared(rows["train"], rows["test"])
    if shared:
        what = f"{shared:,} of {len(rows['test']):,} sequences, or their reverse complements, stand in training too"
        if strict:
            raise DataError(what, where=tables["test"].path, hint="take them out, or leave out --strict")
        warn("shared", f"{tables['test'].path}: {what}; measures are too good by that")
    digest = hashlib.sha256(repr(scheme).encode())
    for part in rows:
        for row in rows[part]:
            digest.update("\t".join((part, row.sequence, *row.labels)).encode() + b"\n")
    metric = choose_metric(kind, protocol.metric)
    return Sequences(name, protocol, scheme, rows, targets, shared, digest.hexdigest(), metric)


# --- One task --------------------------------------------------------------------------------------------------------


class Runner:
    """Runs a task by its protocol and the plan, and gives rows of the table."""

    def __init__(self, store, model, protocol, plan, precision, device, progress):
        self.store, self.model, self.protocol, self.plan, self.progress = store, model, protocol, plan, progress
        self.device = choose_device(device)
        self.precision, self.digest = precision, identify(model)
        self.name = store.name_model(model.name, self.digest)

    def run(self, one, baselines):
        """Yield the rows of a task of sequences: baselines, then every reading with every echo."""
        rows = self.run_baselines(one) if baselines else []
        readings = ("mean",) if self.protocol.head == "cnn" else self.plan.readings
        for reading in readings:
            for echo in self.plan.echoes:
                how = f"frozen, {self.protocol.head} head" if self.protocol.freeze else "fine-tuned"
                place = "every base" if self.protocol.head == "cnn" else reading
                method = f"{how}, {place}" + ("" if echo is None else f", echo {echo}")
                rows.append(self.choose(one, method, lambda rate, seed, trial, r=reading, e=echo: self.train(
                    one, r, e, rate, seed, trial)))  # fmt: skip
        return rows

    def run_variants(self, task):
        """Return the rows of a task of variants: zero-shot scores, baselines, and a head on frozen vectors."""
        rows = [self.store.add({**self.blank(task), **row}) for row in task.zero_shot(self.store, self.progress)]
        one = task.prepare()
        if one is None:
            return rows
        rows += self.run_baselines(one)
        method = f"frozen, {self.protocol.head} head, both alleles"
        rows.append(
            self.choose(one, method, lambda rate, seed, trial: self.train(one, "mean", None, rate, seed, trial))
        )
        return rows

    def blank(self, one):
        """A row with nothing measured yet."""
        protocol = self.protocol
        return {
            "benchmark": self.store.benchmark, "group": protocol.group, "group_size": protocol.group_size,
            "task": one.name, "model": self.name, "model_sha256": self.digest, "method": "", "metric": one.metric,
            "test": None, "sd": None,
            "low": None, "high": None, "valid": None, "seeds": None, "lr": None, "epochs": None,
            **{f"{name}_rows": len(one.rows.get(name, ())) for name in ("train", "valid", "test")},
            "shared": one.shared, "seconds": None, "chosen": "", "why": "",
        }  # fmt: skip

    def run_baselines(self, one):
        """Return the rows of the baselines; what they give is kept like a training."""
        rows = []
        facts = {"what": "baselines", "data": one.digest, "metric": one.metric}

        def make(_):
            begun, found = time.monotonic(), {}
            chosen = []
            for baseline in run_baselines(one.scheme.task, one.baseline_input(), one.targets, one.metric):
                chosen.append((baseline.name, baseline.chosen, time.monotonic() - begun))
                found[f"valid {baseline.name}"], found[f"test {baseline.name}"] = baseline.valid, baseline.test
                begun = time.monotonic()
            return {"chosen": chosen}, found

        record, outputs = self.store.unit(facts, make)
        for name, chosen, seconds in record["chosen"]:
            measured = self.measure(one, [outputs[f"valid {name}"]], [outputs[f"test {name}"]])
            rows.append(self.store.add({**self.blank(one), **measured, "model": BASELINE, "method": name,
                                        "chosen": chosen, "seconds": seconds}))  # fmt: skip
        return rows

    def measure(self, one, valid, test):
        """Measure outputs of the same task: their mean, its spread and interval, and why there is none."""
        kind, truth, scale = one.scheme.task, one.targets, one.scheme.sd
        values = [measure_one(kind, one.metric, truth["test"], outputs, scale) for outputs in test]
        dev = [measure_one(kind, one.metric, truth["valid"], outputs, scale) for outputs in valid]
        if not all(np.isfinite(outputs).all() for outputs in test):
            return {"why": "outputs are not finite"}
        if not np.isfinite(values).all():
            return {"why": explain_nothing(kind, truth["test"], test[0])}
        low, high = interval(kind, one.metric, truth["test"], test, scale)
        return {
            "test": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "low": low, "high": high, "valid": float(np.mean(dev)) if np.isfinite(dev).all() else None,
            "seeds": len(values),
        }  # fmt: skip

    def choose(self, one, method, train):
        """Try the rates with the first seed, go on with the best one, and return the row of the table."""
        plan, tried, has_ended = self.plan, [], False
        rates = plan.rates or (self.protocol.lr,)
        has_trial = len(rates) > 1 and (plan.trial_rows is not None or plan.trial_epochs is not None)
        best = None
        for rate in rates if len(rates) > 1 else ():
            record, outputs = train(rate, plan.seed, has_trial)
            value, has_ended = record["valid"], has_ended or bool(outputs)
            tried.append(f"{rate:g}: {value:.3f}" if value is not None else f"{rate:g}: no")
            if value is not None and (best is None or is_better(one.metric, value, best[0])):
                best = (value, rate)
        rate = rates[0] if len(rates) == 1 else best and best[1]
        chosen = f"lr of {'; '.join(tried)}" if tried else ""
        row = {**self.blank(one), "method": method, "chosen": chosen}
        if len(rates) > 1 and best is None:
            why = f"the validation rows have no {one.metric} to choose a rate by"
            return self.store.add({**row, "why": why if has_ended else "no rate came to an end"})
        done = [train(rate, seed, False) for seed in range(plan.seed, plan.seed + plan.seeds)]
        # A measure that the validation rows do not have is no reason to leave the test rows out.
        if not all(outputs for _, outputs in done):
            return self.store.add({**row, "why": "training stopped by a guard"})
        measured = self.measure(
            one, [outputs["valid"] for _, outputs in done], [outputs["test"] for _, outputs in done]
        )
        seconds = sum(record["seconds"] for record, _ in done) / len(done)
        first = done[0][0]
        return self.store.add({**row, **measured, "lr": first["lr"], "epochs": first["epochs"], "seconds": seconds})

    def vectors(self, sequences, reading):
        """Return (n, hidden) float32 of the frozen model, kept in the output folder."""
        folder = self.store.folder / "features"
        if not isinstance(self.model, Peer):
            predictor = Predictor(self.model, HeadConfig(self.model.config.hidden_size, 1, reading=reading))
            return cached_features(predictor, sequences, folder, self.progress)
        key = hashlib.sha256(repr((self.digest, reading, sequences)).encode()).hexdigest()[:32]
        path = folder / f"features-{key}.npy"
        if not path.is_file():
            found = self.model.embed(sequences, reading, progress=self.progress)
            with open_output(path, force=True) as handle:
                np.save(handle, found)
        return np.load(path)

    def configure(self, one, reading, echo, rate, trial, rows):
        """Return the TuneConfig of a training on so many rows."""
        protocol = self.protocol
        batch = min(protocol.batch_size, rows)
        steps = -(-rows // batch)
        epochs = protocol.epochs or max(1, round((protocol.max_steps or 5 * steps) / steps))
        if trial and self.plan.trial_epochs:
            epochs = min(epochs, self.plan.trial_epochs)
        warmup = 0.05 if protocol.warmup_steps is None else min(0.2, protocol.warmup_steps / (epochs * steps))
        return TuneConfig(
            task=one.scheme.task, head=protocol.head, reading=reading, echo=echo, freeze=protocol.freeze, lr=rate,
            epochs=epochs, batch_size=batch, warmup=warmup, schedule=protocol.schedule, metric=one.metric,
            precision=self.precision,
        )  # fmt: skip

    def train(self, one, reading, echo, rate, seed, trial):
        """Return (record, outputs) of one training: measures, seconds, and what it gives for held-out rows."""
        from hybridna_core.train.loop import choose_precision
        from hybridna_core.train.tune import Examples, tune_head, tune_probe

        count = len(one.rows["train"])
        numbers = np.arange(count)
        if trial and self.plan.trial_rows is not None and count > self.plan.trial_rows:
            numbers = np.sort(np.random.default_rng(seed).permutation(count)[: self.plan.trial_rows])
        config = self.configure(one, reading, echo, rate, trial, len(numbers))
        facts = {
            "data": one.digest, "model": self.digest, "seed": seed, "rows": len(numbers),
            "device": self.device.type, "trial": trial, **dataclasses.asdict(config),
        }  # fmt: skip

        def make(folder):
            begun = time.monotonic()
            features = one.features(self, reading)
            sets, texts = {}, one.baseline_input()
            for name in ("train", "valid") if trial else ("train", "valid", "test"):
                given = texts[name] if features is None else features[name]
                targets = np.asarray(one.targets[name])
                if name == "train":
                    given, targets = (
                        [given[i] for i in numbers] if features is None else given[numbers],
                        targets[numbers],
                    )
                sets[name] = Examples(given, targets)
            rows = {**one.rows, "train": [one.rows["train"][i] for i in numbers]}
            try:
                precision = choose_precision(config.precision, self.device)
                fingerprint = fingerprint_run(config, one.scheme, rows, precision, self.model, ())
                options = {"seed": seed, "progress": self.progress}
                if features is None:
                    cache = self.store.folder / "features"
                    options |= {"precision": precision, "cache": cache}
                    tuned = tune_head(self.model, config, one.scheme, sets, folder, fingerprint, **options)
                else:
                    options["device"] = self.device
                    tuned = tune_probe(self.model.name, config, one.scheme, sets, folder, fingerprint, **options)
            except GuardError as error:
                warn("guard", f"{one.name}, lr {rate}: {error}")
                return {"valid": None, "seconds": time.monotonic() - begun}, {}
            value = tuned.measures["valid"][one.metric]
            parameters = 0 if features is not None else sum(p.numel() for p in self.model.parameters())
            record = {
                "valid": value if value == value else None, "measures": tuned.measures, "epochs": config.epochs,
                "lr": config.choose_rate(parameters), "seconds": time.monotonic() - begun,
                "steps": tuned.position["step"],
            }  # fmt: skip
            log.info("%s, %s, lr %s, seed %s: %s %.4f", one.name, echo or reading, rate, seed, one.metric, value)
            return record, tuned.outputs

        return self.store.unit(facts, make)
