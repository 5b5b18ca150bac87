"""Runs of `generate` that were stopped go on, prompt by prompt, and parts of the prompts make the whole.

toy model, prompts -> a stop in the middle -> the same call again -> the bytes of an uninterrupted run
"""

import os

import pytest
from toys import random_model

from hybridna_core.commands import generate as module
from hybridna_core.commands.generate import generate
from hybridna_core.data import partial
from hybridna_core.errors import Stopped, UsageError

PROMPTS = ["ACG", "TT", "NN", "GGATC", "C", "AGT"]


@pytest.fixture(scope="module")
def model():
    return random_model(3, layer_types=("mamba",))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.fa"
    path.write_text("".join(f">p{i}\n{bases}\n" for i, bases in enumerate(PROMPTS)))
    return str(path)


@pytest.fixture
def saving(monkeypatch):
    """Save after every prompt."""
    monkeypatch.setattr(partial, "SECONDS", 0.0)
    monkeypatch.setattr(partial, "PATIENCE", 0)


def outputs(folder):
    folder.mkdir(exist_ok=True)
    names = {"output": "o.fa", "table": "o.tsv", "report": "o.html"}
    return {key: str(folder / name) for key, name in names.items()}


def stop_at(monkeypatch, number):
    """Let the designs of one prompt, counted from 1 among the usable ones, be interrupted; return the calls so far."""
    true, calls = module.make_designs, []

    def make_designs(*words):
        calls.append(words[3])
        if len(calls) == number:
            raise KeyboardInterrupt
        return true(*words)

    monkeypatch.setattr(module, "make_designs", make_designs)
    return calls


@pytest.mark.parametrize("number", [2, 3, 5])
def test_f17_a_stopped_run_goes_on_with_the_next_prompt(model, prompts, tmp_path, monkeypatch, saving, number):
    options = {"model": model, "prompts": prompts, "num_sequences": 3, "length": 12, "gc": "0.3:0.7"}
    whole = generate(**outputs(tmp_path / "whole"), **options)
    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        stop_at(patch, number)
        generate(**outputs(tmp_path / "again"), **options)
    assert caught.value.exit_code == 130
    # Nothing has its name before all is there.
    assert not [name for name in os.listdir(tmp_path / "again") if not name.endswith(".partial")]
    calls = stop_at(monkeypatch, None)
    again = generate(**outputs(tmp_path / "again"), **options)
    assert calls == [bases for bases in PROMPTS if bases != "NN"][number - 1 :]
    for name in ("o.fa", "o.tsv", "o.html"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "again")) == ["o.fa", "o.html", "o.tsv"]
    ignored = {"seconds", "output"}
    assert {k: v for k, v in again.to_dict().items() if k not in ignored} == {
        k: v for k, v in whole.to_dict().items() if k not in ignored
    }


def test_g23_another_run_does_not_go_on_with_it(model, prompts, tmp_path, monkeypatch, saving):
    options = {"output": str(tmp_path / "o.fa"), "model": model, "prompts": prompts, "num_sequences": 2, "length": 9}
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 3)
        generate(**options)
    for change, words in (
        ({"seed": 1}, "the options"), ({"gc": "0:1"}, "the options"), ({"shard": "1/2"}, "the shard"),
        ({"model": random_model(4, layer_types=("mamba",))}, "the model"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"an unfinished run that is not this one: other are .*{words}"):
            generate(**{**options, **change})
    (tmp_path / "prompts.fa").write_text(">p0\nACG\n>p1\nTA\n")
    with pytest.raises(UsageError, match="other are the prompts"):
        generate(**{**options, "rebuild_index": True})


def test_parts_written_one_after_the_other_are_the_whole(model, prompts, tmp_path):
    options = {"model": model, "prompts": prompts, "num_sequences": 2, "length": 9}
    generate(str(tmp_path / "o.fa"), table=str(tmp_path / "o.tsv"), **options)
    for count in (2, 4, 6):
        for i in range(1, count + 1):
            to = {"output": str(tmp_path / f"{i}.fa"), "table": str(tmp_path / f"{i}.tsv")}
            generate(**to, shard=f"{i}/{count}", force=True, **options)
        for suffix in ("fa", "tsv"):
            joined = b"".join((tmp_path / f"{i}.{suffix}").read_bytes() for i in range(1, count + 1))
            assert joined == (tmp_path / f"o.{suffix}").read_bytes()


@pytest.mark.parametrize("options, words", [
    ({"shard": "7/7"}, "--shard: is 7/7, but there are 6 prompts"),
    ({"shard": "3/2"}, "--shard: is '3/2'; give i/n, i from 1 to n"),
    ({"shard": "1/2", "prompts": None}, "--shard: divides prompts, and there is but one; --shard none, and another"),
])  # fmt: skip
def test_shards_that_are_none(model, prompts, options, words):
    with pytest.raises(UsageError) as caught:
        generate(**{"model": model, "prompts": prompts, "length": 5, **options})
    assert str(caught.value).startswith(words)
