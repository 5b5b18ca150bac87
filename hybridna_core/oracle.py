"""What sequences do, as an oracle says: a fine-tuned regression model, or the simulated assay's own function.

name or folder -> Oracle -> sequences -> activity, a number per output; label, activity -> target, specificity
"""

from dataclasses import dataclass

import numpy as np

from hybridna_core.checkpoint import resolve_folder
from hybridna_core.data import reporter
from hybridna_core.data.inputs import warn
from hybridna_core.errors import GuardError, ModelError
from hybridna_core.model.heads import longest_input
from hybridna_core.model.readout import predict_outputs
from hybridna_core.task_files import load_predictor

SIMULATED = "simulated"


@dataclass(frozen=True)
class Oracle:
    """Tells the activity of sequences.

    outputs  names of the numbers, in the order of a label's digits
    longest  bases that are read at once, None without a limit
    digest   of the weights, None of a function
    """

    name: str
    outputs: tuple
    longest: int | None = None
    digest: str | None = None
    predictor: object = None
    scheme: object = None

    def compute(self, sequences, batch_size="auto", progress=None):
        """Return the activity of sequences, (n, outputs) float64, in the unit of the measurements."""
        if self.predictor is None:
            return reporter.activity(sequences)
        found = predict_outputs(self.predictor, sequences, batch_size, progress=progress)
        if not np.isfinite(found).all():
            raise GuardError("the oracle's output is not finite", where=self.name, hint="check its weights")
        return found * np.array(self.scheme.sd) + np.array(self.scheme.mean)


def load_oracle(name, base=None, **options):
    """Return the Oracle of a folder that `finetune --task regression` wrote, or of `simulated`.

    base     where the base of an adapter folder lies, if not where it was
    options  as `load_model` has them
    Raises ModelError for a model that predicts no numbers, and HybriDNAError kinds.
    """
    if str(name) == SIMULATED:
        warn("simulated", "the oracle is the simulated assay, for trying out only: no activity here was measured")
        return Oracle(SIMULATED, reporter.LINES)
    predictor, scheme = load_predictor(resolve_folder(name), base, **options)
    if scheme.task != "regression":
        hint = "hybridna finetune --task regression makes an oracle"
        raise ModelError(f"its task is {scheme.task}, an oracle's is regression", where=name, hint=hint)
    network = predictor.backbone
    longest = longest_input(network.config, predictor.config.echo)
    return Oracle(network.name, scheme.columns, longest, network.digest, predictor, scheme)


def split_outputs(label):
    """Return which outputs a label asks to be high, those of its highest digit, and which others there are."""
    high = [i for i, digit in enumerate(label) if digit == max(label)]
    return high, [i for i in range(len(label)) if i not in high]


def score_label(values, label):
    """Return how far sequences do what a label asks for: target and specificity, (n,) each.

    values  (n, outputs), an output per digit

    The target is the mean over the outputs of the highest digit; specificity is the target less the mean of the other
    outputs, None for a label of equal digits.
    """
    high, others = split_outputs(label)
    target = values[:, high].mean(axis=1)
    return target, target - values[:, others].mean(axis=1) if others else None
