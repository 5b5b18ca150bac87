"""The spike guard: a step whose loss lies far above those before it is skipped, and a row of such steps ends the run.

loss of all ranks -> mean and deviation of the last steps -> take the step, skip it, or stop
"""

import math
from typing import NamedTuple

from hybridna_core.errors import GuardError


class Spike(NamedTuple):
    """A loss that was too high, and what it was held against; all in bits per base."""

    bits: float
    mean: float
    sigma: float


def spell_spike(spike, unit="bits/base"):
    """Spell a loss that was too high: 2.913 bits/base, mean 1.902, sigma 0.011."""
    return f"{spike.bits:.3f} {unit}, mean {spike.mean:.3f}, sigma {spike.sigma:.3f}"


class SpikeGuard:
    """Judge each step's loss by the mean of those before it in the same stage.

    config  GuardConfig
    state   dict kept in the run's position: `stage`, `bits` of the steps taken last (bits per base, newest last), and
            `skipped`, steps skipped in a row; filled in when empty
    unit    what losses are told in
    """

    def __init__(self, config, state, unit="bits/base"):
        self.config, self.state, self.unit = config, state, unit
        state.setdefault("stage", 0)
        state.setdefault("bits", [])
        state.setdefault("skipped", 0)

    def enter(self, stage):
        """Forget the losses of an earlier stage: longer windows and fewer of them have losses of their own."""
        if stage != self.state["stage"]:
            self.state.update(stage=stage, bits=[])

    def find_spike(self, bits):
        """Return the Spike that a loss is, or None; nothing is judged before `window` losses are known."""
        known = self.state["bits"]
        if not self.config.sigma or len(known) < self.config.window:
            return None
        mean = math.fsum(known) / len(known)
        sigma = math.sqrt(math.fsum((b - mean) ** 2 for b in known) / len(known))
        over = bits - mean
        return Spike(bits, mean, sigma) if over > self.config.sigma * sigma and over > self.config.floor else None

    def note(self, bits, spike):
        """Remember what became of a step; raise GuardError when too many in a row were skipped."""
        if spike is None:
            self.state["bits"] = [*self.state["bits"], bits][-self.config.window :]
            self.state["skipped"] = 0
            return
        self.state["skipped"] += 1
        if self.state["skipped"] >= self.config.stop:
            what = f"{self.state['skipped']} steps in a row had a loss over {self.config.sigma:g} sigma above the mean"
            raise GuardError(f"{what} (the last one {spell_spike(spike, self.unit)})")
