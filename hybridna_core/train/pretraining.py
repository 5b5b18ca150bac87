"""Pretraining as the loop's task: windows of genomes, the loss of every base, held-out bases measured.

run, corpora, species -> rows of a step -> position's ledger; held-out windows -> bits per base
"""

import numpy as np

from hybridna_core.data.corpus import validation_windows
from hybridna_core.model.likelihood import read
from hybridna_core.train.corpora import places_of
from hybridna_core.train.ledger import count_places, write_ledger
from hybridna_core.train.loop import LN2, count_bases, find_stage, stack_weights, with_start
from hybridna_core.train.parallel import ALONE


class Pretraining:
    """What the loop trains on: windows of a run's corpora, one Corpus per stage.

    The position keeps `seen` (bases read, per species) and `ledger` (windows and bases read, per species and contig).
    """

    unit, row, rate_option, loss = "bits/base", "window", "optim.lr", None
    # What a finished model is made of is the last step's weights.
    best = None

    def __init__(self, run, corpora, species):
        self.run, self.corpora, self.species = run, corpora, species
        self.ends = np.cumsum([s.steps for s in run.stage])
        self.count = count_bases

    def begin(self, position):
        """Fill in what a position lacks."""
        if "ledger" not in position:
            # Snapshots of early releases have none; what was read can be told from the number of steps.
            position["ledger"] = {}
            count_places(position["ledger"], places_of(self.run, self.corpora, 0, position["step"]))

    def _windows(self, step):
        """Return a step's stage and the numbers of its windows there."""
        stage = find_stage(self.ends, step)
        within = step - int(self.ends[stage - 1]) if stage else step
        rows = self.run.stage[stage].batch_tokens // self.run.stage[stage].context_length
        return stage, range(within * rows, within * rows + rows)

    def read(self, step, rank=0, size=1):
        """Return a rank's rows of a step: tokens (rows, n) and the weights of their bases, or None."""
        stage, numbers = self._windows(step)
        windows = [self.corpora[stage].window(number) for number in numbers[rank::size]]
        bos = self.run.model.bos_token_id
        return with_start(np.stack([window.ids for window in windows]), bos), stack_weights(windows, bos)

    def note(self, position):
        """Enter the windows of the position's next step into its ledger."""
        stage, numbers = self._windows(position["step"])
        places = [self.corpora[stage].place(number) for number in numbers]
        for place in places:
            position["seen"][place.species] += place.end - place.start
        count_places(position["ledger"], places)

    def spell(self, step, rank=0, size=1):
        """Name a rank's windows of a step: windows 0 to 7 of stage 0."""
        stage, numbers = self._windows(step)
        numbers = numbers[rank::size]
        by = f" by {numbers.step}" if numbers.step > 1 else ""
        return f"windows {numbers[0]} to {numbers[-1]}{by} of stage {stage}"

    def count_tokens(self, steps):
        """Tokens read in the first `steps` steps."""
        total = 0
        for stage in self.run.stage:
            taken = min(steps, stage.steps)
            total += taken * stage.batch_tokens
            steps -= taken
        return total

    def save_memory(self, tokens):
        """Say what needs less memory; tokens: a smaller microbatch, 0 when there is none."""
        hint = "begin again with a shorter context_length"
        if tokens:
            hint = f"--set optim.microbatch_tokens={tokens} --override optim.microbatch_tokens"
        return f"{hint}, or optim.checkpoint_activations = true"

    def write(self, folder, position):
        """Write the ledger beside the snapshots."""
        write_ledger(folder / "ledger.tsv", position["ledger"], self.species)

    def is_over(self, position):
        """Never end before the last step."""
        return False

    def judge(self, model, position, measured):
        """Take what was measured for what it is: no choice among steps is made by it."""

    def measure(self, model, stage, stop=None, world=ALONE):
        """Measure bits per base on the held-out windows of each species, as long as those of a stage.

        stop     called before each window; what it returns, if true on any rank, ends it all
        returns  {species: bits per base}, without those that hold out nothing; None when stopped

        Ranks take turns with the windows. Where weights are split all of them read at the same time, so that a rank
        without a window of its own reads one along.
        """
        bos = self.run.model.bos_token_id
        bases = self.run.stage[stage].context_length - (bos is not None)
        measured = {}
        for one in self.species:
            windows = validation_windows(one, bases, self.run.valid.windows)
            found = []
            for first in range(0, len(windows), world.size):
                if any(stopped for (stopped,) in world.gather_numbers(bool(stop and stop()))):
                    return None
                here = windows[first : first + world.size]
                with world.watch():
                    own = window_bits(model, here[min(world.rank, len(here) - 1)], bos)
                found += world.gather_numbers(*own)[: len(here)]
            count = sum(counted for _, counted in found)
            if count:
                measured[one.name] = sum(bits for bits, _ in found) / count
        return measured


def window_bits(model, ids, bos):
    """Sum the bits of A, C, G, T over the second half of one window; return the sum and the number of bases.

    ids  (bases,) uint8
    """
    log_probs, _ = read(model, with_start(ids[None], bos).to(model.device))
    counted = log_probs[0, -(len(ids) // 2) :]
    counted = counted[~counted.isnan()]
    return -float(counted.sum()) / LN2, len(counted)
