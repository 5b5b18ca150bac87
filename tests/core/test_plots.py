"""Curves of a run: what is drawn is what the log says, and no picture ever stops a run."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from genome_files import warnings_of
from runs import lay_out

from hybridna_core.commands.plot_training import plot_training
from hybridna_core.commands.pretrain import pretrain
from hybridna_core.errors import DataError, SystemFault, UsageError
from hybridna_core.train import plots
from hybridna_core.train.plots import draw_curves, read_curves, running_mean, y_limits

pytest.importorskip("matplotlib")
CLASSES = ("bacteria", "fungi", "plants", "mammals")


def made_up_run(folder, species, classes=CLASSES):
    """Write the log of a run of three stages; return what of its RunConfig is needed."""
    stages = [SimpleNamespace(context_length=c, steps=s, batch_tokens=t) for c, s, t in
              ((8192, 400, 2**14), (32768, 60, 2**15), (131072, 40, 2**17))]  # fmt: skip
    names = [f"species {i}" for i in range(species)]
    step, tokens, lines = 0, 0, ["", '{"step": 3', "[]"]
    for number, stage in enumerate(stages):
        for _ in range(stage.steps):
            step, tokens = step + 1, tokens + stage.batch_tokens
            bits = 1.9 + 1.6 * np.exp(-step / 30)
            if step in (200, 201):
                lines.append(json.dumps({"step": step, "stage": number, "skipped": {"bits": 9.0, "mean": 1.9}}))
            if step % 2 == 0:
                own = None if step == 200 else bits
                lines.append(json.dumps({"step": step, "stage": number, "bits_per_base": own, "tokens": tokens}))
            if step % 50 == 0:
                valid = {name: bits + 0.01 * i for i, name in enumerate(names)}
                lines.append(json.dumps({"step": step, "stage": number, "valid": valid}))
    (folder / "log.jsonl").write_text("\n".join(lines))
    kinds = [SimpleNamespace(name=n, class_=classes[i % len(classes)] if classes else "") for i, n in enumerate(names)]
    return SimpleNamespace(stage=stages, species=kinds)


class Kept:
    """Keeps the figure that would be written."""

    def __init__(self, patch):
        patch.setattr(plots, "_write", lambda figure, path: setattr(self, "figure", figure))

    def legend(self, axes):
        return [text.get_text() for text in self.figure.axes[axes].get_legend().get_texts()]

    def lines(self, axes, label):
        return [line for line in self.figure.axes[axes].get_lines() if line.get_label().startswith(label)]


def test_what_the_log_says(tmp_path):
    run = made_up_run(tmp_path, 2)
    for config in (run, None):
        curves = read_curves(tmp_path / "log.jsonl", config)
        assert len(curves.bits) == 250 and np.isnan(curves.bits).sum() == 1
        assert curves.tokens[[0, -1]].tolist() == [2**15, 400 * 2**14 + 60 * 2**15 + 40 * 2**17]
        assert np.bincount(curves.stage).tolist() == [200, 30, 20]
        assert [len(v) for v in curves.valid.values()] == [10, 10]
        assert curves.skipped == pytest.approx([200 * 2**14, 201 * 2**14])
        # Step 450 lies 50 steps into the second stage.
        assert curves.valid["species 1"][8][:2] == (pytest.approx(400 * 2**14 + 50 * 2**15), 1)


def test_loss_by_stage(tmp_path, monkeypatch):
    run = made_up_run(tmp_path, 2)
    kept = Kept(monkeypatch)
    draw_curves(read_curves(tmp_path / "log.jsonl", run), "x", run=run, title="base")
    stages = ["stage 0: 8,192 tokens", "stage 1: 32,768 tokens", "stage 2: 131,072 tokens"]
    assert kept.legend(0) == [*stages, "steps skipped for their loss: 2"]
    (second,) = kept.lines(0, "stage 1")
    # In millions of tokens, from after the first stage's end.
    assert second.get_xdata()[[0, -1]] == pytest.approx([400 * 0.016384 + 2 * 0.032768, 400 * 0.016384 + 60 * 0.032768])
    assert second.get_ydata()[-1] == pytest.approx(1.9, abs=1e-4)
    loss, held = kept.figure.axes
    assert loss.get_ylabel() == held.get_ylabel() == "bits per base"
    assert held.get_xlabel() == "tokens read (millions)" and kept.figure._suptitle.get_text() == "base"
    # A line at each end of a stage, in both.
    for axes in (loss, held):
        plain = [line.get_xdata() for line in axes.get_lines() if line.get_label()[0] == "_"]
        marks = [x[0] for x in plain if len(x) == 2]
        assert marks == pytest.approx([400 * 0.016384, 400 * 0.016384 + 60 * 0.032768])


def test_forty_species_by_class(tmp_path, monkeypatch):
    run = made_up_run(tmp_path, 40)
    kept = Kept(monkeypatch)
    draw_curves(read_curves(tmp_path / "log.jsonl", run), "x", run=run)
    # In the order in which the curves end: species 3, 7, ... 39 are mammals, 0.01 bits apart.
    assert kept.legend(1) == ["mammals 2.110 (10 species)", "plants 2.100 (10 species)", "fungi 2.090 (10 species)",
                              "bacteria 2.080 (10 species)"]  # fmt: skip
    assert len(kept.figure.axes[1].get_lines()) == 40 + 4 + 2


@pytest.mark.parametrize(("species", "first"), [(3, "species 2 1.920"), (40, "species 39 2.290")])
def test_without_classes_each_species_has_a_style_of_its_own(tmp_path, monkeypatch, species, first):
    run = made_up_run(tmp_path, species, classes=())
    kept = Kept(monkeypatch)
    draw_curves(read_curves(tmp_path / "log.jsonl", run), "x", run=run)
    assert kept.legend(1)[0] == first and len(kept.legend(1)) == species
    curves = kept.lines(1, "species")
    assert len({(c.get_color(), str(c._dash_pattern)) for c in curves}) == species


def test_running_mean():
    values = np.array([1.0, 2.0, np.nan, 4.0, 10.0])
    assert running_mean(values, 1).tolist() == [1.5, 1.5, 3.0, 7.0, 7.0]
    assert running_mean(values, 9).tolist() == [4.25] * 5
    assert np.isnan(running_mean(np.array([np.nan]), 2)).all()


def test_the_first_values_do_not_flatten_the_rest():
    low, high = y_limits(np.concatenate([[3.6, 3.0], np.linspace(2.0, 1.9, 100)]))
    assert 1.85 < low < 1.9 and 2.0 < high < 2.2
    low, high = y_limits(np.array([2.0, 1.9]))
    assert low < 1.9 and high > 2.0
    assert y_limits(np.array([np.nan])) == (0.0, 2.0)
    assert y_limits(np.array([1.5, 1.5])) == (1.45, 1.55)


# --- With a run ------------------------------------------------------------------------------------------------------


def is_picture(path):
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 500


def test_at_the_end_of_a_run_and_when_asked(tmp_path, monkeypatch):
    path = lay_out(tmp_path)
    short = ["stage.0.steps=4", "stage.1.steps=2", "save.log_every=1", "valid.every=3"]
    pretrain(path, device="cpu", set=[*short, "log.plot=true"])
    out = tmp_path / "out"
    assert is_picture(out / "loss.png") and not list(out.glob(".loss*"))
    (out / "loss.png").unlink()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    drawn = plot_training(out)
    assert drawn.picture == str(out / "loss.png") and drawn.tokens == 6 * 256 and drawn.bits_per_base.keys() == {"bug"}
    assert is_picture(out / "loss.png")
    # Nothing else was touched.
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "loss.png"} == before
    kept = Kept(monkeypatch)
    for run, more in ((path, {}), (out, {}), (path, {"output": out})):
        plot_training(run, **more)
        assert kept.legend(0) == ["stage 0: 64 tokens", "stage 1: 128 tokens"]
    # The run file is gone: the finished model has it too; without that there are numbers alone.
    path.rename(tmp_path / "elsewhere.toml")
    plot_training(out)
    assert kept.legend(0) == ["stage 0: 64 tokens", "stage 1: 128 tokens"]
    (out / "model" / "run.toml").unlink()
    plot_training(out)
    assert kept.legend(0) == ["stage 0", "stage 1"] and kept.figure._suptitle.get_text() == "out"


def test_without_matplotlib_a_run_goes_on(tmp_path, monkeypatch, caplog):
    path = lay_out(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pretrain(path, device="cpu", set=["stage.0.steps=1", "stage.1.steps=1", "log.plot=true", "optim.warmup_steps=0"])
    words = "matplotlib is not installed; pip install 'hybridna[train]'"
    assert warnings_of(caplog, "plot") == [f"no curves drawn: {words}"]
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    with pytest.raises(SystemFault) as caught:
        plot_training(tmp_path / "out")
    assert str(caught.value) == words and caught.value.exit_code == 5


def test_what_cannot_be_drawn(tmp_path):
    path = lay_out(tmp_path)
    for run in (path, tmp_path):
        with pytest.raises(SystemFault, match=r"log.jsonl: No such file or directory; give a run's folder or run file"):
            plot_training(run)
    with pytest.raises(UsageError, match="is a run's folder, so that -o has no meaning"):
        plot_training(tmp_path, output="x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DataError, match=r"log.jsonl: there is nothing to draw yet: no line has a loss"):
        plot_training(path)
