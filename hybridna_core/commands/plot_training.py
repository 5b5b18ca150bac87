"""Drawing a pretraining run's curves from its log, while it trains or afterwards.

run file or run's folder -> log.jsonl -> curves -> loss.png
"""

from pathlib import Path
from typing import NamedTuple

from hybridna_core.errors import HybriDNAError, UsageError
from hybridna_core.run_config import read_run


class PlotSummary(NamedTuple):
    """What was drawn: the picture, and up to how many tokens."""

    picture: str
    tokens: int
    bits_per_base: dict

    def to_dict(self):
        return self._asdict()


def plot_training(run, *, output=None, set=()):
    """Draw the training loss by stage and the held-out bits by class into `loss.png` in a run's folder.

    run     path of a run file, or of a run's folder
    output  folder of the run; the run file's own `output` when None
    set     overrides such as `species.0.class=fungi`
    Nothing is trained. Returns a PlotSummary; raises UsageError, DataError (nothing logged yet), SystemFault.
    """
    from hybridna_core.train.plots import draw_curves, read_curves

    path = Path(run)
    if path.is_dir():
        if output is not None:
            raise UsageError("is a run's folder, so that -o has no meaning", where=path)
        folder, config = path, read_config(path, set)
    else:
        config = read_run(path, set)
        folder = Path(output or config.output)
        if not (output or config.output):
            raise UsageError("no output folder", where=path, hint='give -o DIR, or output = "DIR" in the run file')
    curves = read_curves(folder / "log.jsonl", config)
    title = folder.absolute().name if config is None else config.name
    draw_curves(curves, folder / "loss.png", run=config, title=title)
    last = {name: points[-1][2] for name, points in curves.valid.items()}
    return PlotSummary(str(folder / "loss.png"), int(curves.tokens[-1]), last)


def read_config(folder, set=()):
    """Return the RunConfig of a run's folder: its run file where it was, else as the finished model has it, or None."""
    from hybridna_core.train.corpora import read_record

    try:
        record = read_record(folder)
        return read_run(record["run"], [*record["set"], *set])
    except HybriDNAError:
        pass
    try:
        return read_run(folder / "model" / "run.toml", set)
    except HybriDNAError:
        return None
