"""Run files: what they may say, overrides, and the message for each way to get one wrong."""

from pathlib import Path

import pytest

from hybridna_core.config import PRESETS
from hybridna_core.errors import SystemFault, UsageError
from hybridna_core.run_config import TEMPLATES, RunConfig, read_run, read_template

MINIMAL = """
[model]
preset = "tiny"

[[species]]
name = "bug"
fasta = "genomes/bug.fa"

[[stage]]
context_length = 128
steps = 10
batch_tokens = 512
"""
ROOT = Path(__file__).resolve().parent.parent.parent


def write(tmp_path, text=MINIMAL):
    path = tmp_path / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(tmp_path, text=MINIMAL, overrides=()):
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_run(path, overrides)
    return str(caught.value).replace(str(path), "run.toml")


def test_defaults_are_the_published_settings(tmp_path):
    run = read_run(write(tmp_path))
    assert run.model == PRESETS["tiny"]
    assert (run.optim.betas, run.optim.eps, run.optim.warmup_steps) == ((0.9, 0.95), 1e-8, 2000)
    assert (run.optim.weight_decay, run.optim.final_lr, run.optim.clip) == (0.1, 0.1, 1.0)
    assert (run.mixture.power, run.mixture.max_passes, run.mixture.reverse_complement) == (0.7, 15, 0.5)
    assert run.output == "" and run.seed == 0


def test_paths_are_relative_to_the_run_file(tmp_path):
    path = write(tmp_path, 'output = "out"\n' + MINIMAL)
    run = read_run(path)
    assert run.species[0].fasta == str(tmp_path / "genomes/bug.fa") and run.output == str(tmp_path / "out")
    assert read_run(path, ["species.0.fasta=/elsewhere/b.fa"]).species[0].fasta == "/elsewhere/b.fa"


def test_bed_files_lie_beside_the_run_file_too(tmp_path):
    run = read_run(write(tmp_path), ["species.0.exclude_bed=x.bed", "species.0.valid_bed=/v.bed"])
    assert (run.species[0].exclude_bed, run.species[0].valid_bed) == (str(tmp_path / "x.bed"), "/v.bed")
    assert read_run(write(tmp_path)).species[0].exclude_bed is None


def test_a_mixture_by_class(tmp_path):
    text = MINIMAL.replace('name = "bug"', 'name = "bug"\nclass = "fungi"')
    run = read_run(write(tmp_path, text + '[mixture]\nby = "class"\nclasses = {fungi = 2}\n'))
    assert run.species[0].class_ == "fungi" and run.mixture.classes == {"fungi": 2}
    # A class is only a note unless the mixture goes by it.
    assert read_run(write(tmp_path, text)).mixture.by == "size"


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        ('by = "class"', 'mixture: classes: is {}, must be a share for each class, and given only with by = "class"'),
        ("classes = {fungi = 1}", "must be a share for each class"),
        ('by = "class"\nclasses = {fungi = 0}', "mixture: classes.fungi: is 0, must be a number above 0"),
        ('by = "class"\nclasses = {fungi = true}', "classes.fungi: is True, must be a number above 0"),
        ('by = "class"\nclasses = 3', "classes: is 3, must be a table"),
        ('by = "class"\nclasses = {fungi = 1, plants = 1}',
         "run.toml: mixture.classes.plants: is 1, must be the share of a class that some species has"),
        ('by = "class"\nclasses = {plants = 1}', "[0].class: is 'fungi', must be one of mixture.classes (plants)"),
        ('by = "weights"', "species[0].weight: is None, must be given"),
        ('by = "hand"', "by: is 'hand', must be one of size, class, weights"),
        ("soft_masked_weight = 1.5", "soft_masked_weight: is 1.5, must be between 0 and 1"),
    ],
)  # fmt: skip
def test_mixtures_that_do_not_do(tmp_path, mixture, words):
    text = MINIMAL.replace('name = "bug"', 'name = "bug"\nclass = "fungi"')
    assert words in refused(tmp_path, f"{text}[mixture]\n{mixture}\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("clas = 'fungi'", "species[0]: unknown key 'clas'; did you mean 'class'?"),
        ("class_ = 'fungi'", "unknown key 'class_'; did you mean 'class'?"),
        ("class = ''", "class: is '', must be a text that is not empty"),
        ("class = 3", "must be a text"),
        ("exclude_bed = ' '", "exclude_bed: is ' ', must be the path of a BED file"),
        ("valid = ['all']\nvalid_bed = 'x'", "valid_bed: is 'x', must be left out with valid"),
    ],
)
def test_species_that_do_not_do(tmp_path, line, words):
    assert words in refused(tmp_path, MINIMAL.replace('name = "bug"', f'name = "bug"\n{line}'))


def test_a_preset_is_changed_field_by_field(tmp_path):
    run = read_run(write(tmp_path), ["model.hidden_size=64", 'model.layer_types=["mamba", "attention"]'])
    assert (run.model.hidden_size, run.model.layer_types) == (64, ("mamba", "attention"))
    assert run.model.intermediate_size == PRESETS["tiny"].intermediate_size


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("seed=3", lambda r: r.seed == 3),
        ("stage.0.steps=7", lambda r: r.stage[0].steps == 7),
        (" stage.0.steps = 7 ", lambda r: r.stage[0].steps == 7),
        ("optim.lr=2e-3", lambda r: r.optim.lr == 2e-3),
        ("optim.lr=1", lambda r: r.optim.lr == 1.0),
        ("optim.betas=[0.8, 0.99]", lambda r: r.optim.betas == (0.8, 0.99)),
        ('species.0.valid=["all"]', lambda r: r.species[0].valid == ("all",)),
        ("name=a=b", lambda r: r.name == "a=b"),
        ("name=plain words", lambda r: r.name == "plain words"),
        ('name="quoted"', lambda r: r.name == "quoted"),
        ("model.preset=300m", lambda r: r.model == PRESETS["300m"]),
        ("mixture.power=0", lambda r: r.mixture.power == 0.0),
    ],
)
def test_overrides(tmp_path, override, found):
    assert found(read_run(write(tmp_path), [override]))


def test_later_overrides_win(tmp_path):
    assert read_run(write(tmp_path), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "--set: 'seed' is not KEY=VALUE"),
        ("=3", "--set: '=3' is not KEY=VALUE"),
        ("optim..lr=3", "is not KEY=VALUE"),
        ("seed.more=3", "run.toml: seed: is {'more': 3}, must be a whole number"),
        ("model.preset.x=3", "--set: model.preset.x: there is no table that could hold 'x'"),
        ("stage.0.steps.x=3", "there is no table that could hold 'x'"),
        ("stage.1.steps=3", "--set: stage.1.steps: '1' is not the number of a table; there are 1, counted from 0"),
        ("stage.first.steps=3", "'first' is not the number of a table"),
        ("stage.steps=3", "'steps' is not the number of a table"),
        ("stage.-1.steps=3", "'-1' is not the number"),
        ("stage.²=3", "'²' is not the number"),
        ("stage.0=5", "run.toml: stage[0]: must be a table, not int"),
        ("optim.lrr=3", "run.toml: optim: unknown key 'lrr'; did you mean 'lr'?"),
        ("seed=1\nname='x'", "run.toml: seed: is \"1\\nname='x'\", must be a whole number"),
    ],
)
def test_overrides_that_do_not_fit(tmp_path, override, words):
    assert words in refused(tmp_path, overrides=[override])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sed = 3", "run.toml: unknown key 'sed'; did you mean 'seed'?"),
        ("qqqqq = 3", "run.toml: unknown key 'qqqqq'; known keys: guard, init, log, mixture, model, "),
        ("seed = 1.5", "run.toml: seed: is 1.5, must be a whole number"),
        ("seed = -1", "run.toml: seed: is -1, must be 0 to 2^63 - 1"),
        ("seed = true", "run.toml: seed: is True, must be a whole number"),
        ("name = 3", "run.toml: name: is 3, must be a text"),
        ("output = ['x']", "run.toml: output: is"),
        ("optim = {lr = 0}", "run.toml: optim: lr: is 0.0, must be above 0"),
        ("optim = {lr = nan}", "run.toml: optim: lr: is nan, must be a finite number"),
        ("optim = {lr = inf}", "run.toml: optim: lr: is inf, must be a finite number"),
        ("optim = {lr = '1e-3'}", "optim: lr: is '1e-3', must be a finite number"),
        ("optim = {betas = [0.9]}", "optim: betas: is (0.9,), must be a list"),
        ("optim = {betas = [0.9, 1]}", "must be two numbers in [0, 1)"),
        ("optim = {final_lr = 2}", "optim: final_lr: is 2.0, must be between 0 and 1"),
        ("optim = {weight_decay = -1}", "weight_decay: is -1.0, must be 0 or more"),
        ("optim = {eps = 0}", "eps: is 0.0, must be above 0"),
        ("optim = {warmup_steps = -1}", "warmup_steps: is -1, must be 0 or more"),
        ("optim = {clip = 0}", "clip: is 0.0, must be above 0"),
        ("optim = {microbatch_tokens = 0}", "microbatch_tokens: is 0, must be at least 1"),
        ("optim = 3", "run.toml: optim: must be a table, not int"),
        ("mixture = {power = -1}", "mixture: power: is -1.0, must be 0 or more"),
        ("mixture = {max_passes = 0}", "max_passes: is 0.0, must be above 0"),
        ("mixture = {max_unknown = 1.1}", "max_unknown: is 1.1, must be between 0 and 1"),
        ("save = {keep = 1}", "save: keep: is 1, must be at least 2"),
        ("save = {evry = 1}", "unknown key 'evry'; did you mean 'every'?"),
        ("valid = {windows = 0}", "valid: windows: is 0, must be at least 1"),
        ("seed = 1\nseed = 2", "run.toml: not TOML (Cannot overwrite a value (at line 2"),
        ("seed = ", "run.toml: not TOML (Invalid value (at line 1"),
        ("seed = 1979-05-27", "seed: is datetime.date(1979, 5, 27), must be a whole number"),
        ("x = " + "[" * 20000, "run.toml: nested too deeply"),
    ],
)
def test_wrong_keys_and_values(tmp_path, line, words):
    assert words in refused(tmp_path, line + "\n" + MINIMAL)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('preset = "tiny"', 'preset = "tinny"', "model.preset: no preset called 'tinny'; did you mean 'tiny'?"),
        ('preset = "tiny"', "preset = 3", "model.preset: is 3, must be the name of a preset"),
        ('preset = "tiny"', "preset = ['tiny']", "model.preset: is ['tiny'], must be the name of a preset"),
        ('preset = "tiny"', 'presett = "tiny"', "model: unknown key 'presett'; did you mean 'preset'?"),
        ('preset = "tiny"', "hidden_size = 8", "run.toml: model: key 'intermediate_size' is missing"),
        ('preset = "tiny"', 'preset = "tiny"\nlayer_types = ["mamba", "moe"]', "layer_types[1]: is 'moe', must be"),
        ('preset = "tiny"', 'preset = "tiny"\nlayer_types = []', "layer_types: is (), must be one entry per layer"),
        ('preset = "tiny"', 'preset = "tiny"\nlayer_types = "mamba"', "layer_types: is 'mamba', must be a list"),
        ('preset = "tiny"', 'preset = "tiny"\nhidden_size = 126', "must be a multiple of num_attention_heads (4)"),
        ('preset = "tiny"', 'preset = "tiny"\nhiden_size = 128', "'hiden_size'; did you mean 'hidden_size'?"),
        ('preset = "tiny"', 'preset = "tiny"\nvocab_size = 16', "model.vocab_size: is 16, must be 12"),
        ('[model]\npreset = "tiny"', "", "run.toml: key 'model' is missing"),
        ('[model]\npreset = "tiny"', 'model = "tiny"', "run.toml: model: must be a table, not str"),
        ("[[stage]]", "[stage]", "run.toml: stage: is"),
        ("[[stage]]", "[[stages]]", "run.toml: unknown key 'stages'; did you mean 'stage'?"),
        ("steps = 10", "", "run.toml: stage[0]: key 'steps' is missing"),
        ("steps = 10", "steps = 0", "run.toml: stage[0]: steps: is 0, must be at least 1"),
        ("batch_tokens = 512", "batch_tokens = 500", "must be a multiple of context_length (128)"),
        ("context_length = 128", "context_length = 1", "context_length: is 1, must be at least 2"),
        ("[[stage]]", "[[stage]]\nlr = 3", "stage[0]: unknown key 'lr'"),
        ('fasta = "genomes/bug.fa"', "", "run.toml: species[0]: key 'fasta' is missing"),
        ('fasta = "genomes/bug.fa"', 'fasta = ""', "species[0]: fasta: is '', must be the path of a FASTA file"),
        ('name = "bug"', 'name = " "', "species[0]: name: is ' ', must be a text that is not empty"),
        ('name = "bug"', 'name = "bug"\nweight = 0', "species[0]: weight: is 0.0, must be above 0"),
        ('name = "bug"', 'name = "bug"\nvalid = "all"', "species[0]: valid: is 'all', must be a list"),
        ('name = "bug"', 'name = "bug"\nvalid = [3]', "species[0]: valid: is (3,), must be a list (a text each)"),
    ],
)  # fmt: skip
def test_wrong_tables(tmp_path, old, new, words):
    assert old in MINIMAL
    assert words in refused(tmp_path, MINIMAL.replace(old, new))


def test_species_are_named_once_and_files_read_once(tmp_path):
    twin = MINIMAL + '[[species]]\nname = "bug"\nfasta = "other.fa"\n'
    assert "run.toml: species: is 'bug', must be named once" in refused(tmp_path, twin)
    twin = MINIMAL + '[[species]]\nname = "bee"\nfasta = "genomes/bug.fa"\n'
    assert "species: is 'genomes/bug.fa', must be the FASTA of one table only" in refused(tmp_path, twin)


def test_a_stage_longer_than_the_model_reads(tmp_path):
    said = refused(tmp_path, overrides=["model.max_position_embeddings=64"])
    assert "stage[0].context_length: is 128, must be at most the model's max_position_embeddings (64)" in said


def test_files_that_cannot_be_read(tmp_path):
    for path, words in ((tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(SystemFault, match=words):
            read_run(path)
    assert "run.toml: not UTF-8 at byte 5" in refused(tmp_path, b"a = '\xff'\n")
    big = b"#" * (8 * 2**20 + 1)
    assert "run.toml: 8,388,609 bytes of TOML, at most 8,388,608 are read" in refused(tmp_path, big)


def test_a_byte_order_mark_is_skipped(tmp_path):
    assert isinstance(read_run(write(tmp_path, b"\xef\xbb\xbf" + MINIMAL.encode())), RunConfig)


def test_the_demo_run_file_is_sound():
    assert read_run(ROOT / "demo" / "pretrain.toml").name == "demo"


@pytest.mark.parametrize(
    ("name", "lr", "tokens"), [("300m", 1e-3, 2**19), ("3b", 6e-4, 2**19), ("7b", 1e-4, 2**19), ("tiny", 2e-3, 2**17)]
)
def test_templates(tmp_path, name, lr, tokens):
    path = tmp_path / f"{name}.toml"
    path.write_text(read_template(name))
    run = read_run(path)
    assert run.model == PRESETS[name] and run.optim.lr == lr and run.output.endswith(f"runs/{name}")
    assert [s.context_length for s in run.stage] == [8192, 32768, 131072]
    assert {s.batch_tokens for s in run.stage} == {tokens}
    # Each longer context: 2 % of the steps of the first.
    first = run.stage[0].steps
    assert [s.steps for s in run.stage[1:]] == [first // 50] * 2
    assert (run.optim.betas, run.optim.eps, run.optim.optimizer) == ((0.9, 0.95), 1e-8, "adamw")
    if name != "tiny":
        assert (first, run.optim.warmup_steps) == (500_000, 2000)
        text = read_template(name)
        for key in ("schedule", "weight_decay"):
            assert "ASSUMED" in text[: text.index(key)]


def test_templates_are_those_of_the_presets():
    assert sorted(p.stem for p in TEMPLATES.glob("*")) == sorted(PRESETS)
    with pytest.raises(UsageError, match="no preset called '7bb'; did you mean '7b'"):
        read_template("7bb")


def test_duplications_of_one_stage(tmp_path):
    run = read_run(write(tmp_path), ["stage.0.duplication=0.9"])
    assert run.stage[0].duplication == 0.9
    assert read_run(write(tmp_path)).stage[0].duplication == 0
    with pytest.raises(UsageError, match=r"stage.*duplication: is 1\.5, must be between 0 and 1"):
        read_run(write(tmp_path), ["stage.0.duplication=1.5"])
