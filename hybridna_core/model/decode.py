"""One-token steps of a fixed number of rows, recorded once and replayed.

Reading -> its states copied into memory that stays -> graphs.record -> ids (and parents) in, logits out -> Reading
"""

import torch

from hybridna_core.model.likelihood import Reading
from hybridna_core.model.state import AttentionState, FixedAttentionState, MambaState, ModelState
from hybridna_kernels import graphs

# More rows keep the device busy while the next kernel is launched, and what they copy would cost more than it saves.
MOST_ROWS = 256
# Tokens of the first recording: each step attends to all the room there is, so that it grows as it is needed.
ROOM = 1024


class StepGraph:
    """Steps that go on from a Reading, which is left as it is.

    moves  rows may go on from others than themselves

    Launching the few hundred kernels of a step one by one takes longer than they run where rows are few.
    """

    def __init__(self, model, reading, moves=False):
        self.model, self.moves = model, moves
        self._record(reading, ROOM)

    @property
    def rows(self):
        return len(self.logits)

    @torch.no_grad()
    def append(self, ids, parents=None):
        """Read one more token per row and return the Reading after it, without its state.

        ids      (rows,) int64
        parents  (rows,) int64, whose states the rows go on from; only where rows move, None: their own
        """
        if self.used == self.room:
            self._record(self.reading(), 2 * self.room)
        self.tokens.copy_(torch.as_tensor(ids)[:, None])
        if self.moves:
            self.parents.copy_(torch.arange(self.rows) if parents is None else torch.as_tensor(parents))
        self.replay()
        self.used += 1
        return Reading(None, self.logits.clone())

    def reading(self):
        """Return the Reading after all that was read, which later steps do not change."""
        layers = [
            MambaState(layer.conv.clone(), layer.ssm.clone())
            if isinstance(layer, MambaState)
            else AttentionState(
                *(t[:, : self.used].clone() for t in (layer.keys, layer.values)), layer.shared_keys, layer.shared_values
            )
            for layer in self.layers
        ]
        return Reading(ModelState(tuple(layers), self.before + self.used), self.logits.clone())

    @torch.no_grad()
    def load(self, reading):
        """Go on from another Reading of as many rows, which shares the same tensors of keys, as `repeat` gives them."""
        self.used = reading.state.length - self.before
        self.length.fill_(self.used)
        for layer, state in zip(self.layers, reading.state.layers, strict=True):
            if isinstance(layer, MambaState):
                layer.conv.copy_(state.conv)
                layer.ssm.copy_(state.gather())
                continue
            if state.shared_keys is not layer.shared_keys:
                raise ValueError("keys are shared with others than those recorded")
            layer.keys.zero_()[:, : self.used] = state.keys
            layer.values.zero_()[:, : self.used] = state.values
        self.logits.copy_(reading.logits)

    @torch.no_grad()
    def _record(self, reading, room):
        device, rows = self.model.device, len(reading.logits)
        self.logits = torch.empty_like(reading.logits)
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.parents = torch.arange(rows, device=device) if self.moves else None
        self.length = torch.zeros((), dtype=torch.int64, device=device)
        attention = [state for state in reading.state.layers if isinstance(state, AttentionState)]
        # Keys that each row has for itself; all before them are shared.
        own = attention[0].keys.shape[1] if attention else 0
        self.before, self.room, self.layers = reading.state.length - own, own + room, []
        for state in reading.state.layers:
            if isinstance(state, MambaState):
                shape = rows, *state.ssm.shape[1:]
                self.layers.append(MambaState(torch.empty_like(state.conv), state.ssm.new_empty(shape)))
            else:
                kept = (state.keys.new_zeros(rows, self.room, *state.keys.shape[2:]) for _ in range(2))
                self.layers.append(FixedAttentionState(*kept, self.length, self.parents, *state[2:]))
        self.load(reading)
        self.replay = graphs.record(self._step, device)
        self.load(reading)

    def _step(self):
        x = self.model.model.embed_tokens(self.tokens)
        for block, state in zip(self.model.model.layers, self.layers, strict=True):
            before = state
            if isinstance(state, MambaState) and self.moves:
                before = MambaState(state.conv.index_select(0, self.parents), state.ssm, self.parents)
            x, after = block(x, before)
            if isinstance(state, MambaState):
                state.conv.copy_(after.conv)
                state.ssm.copy_(after.ssm)
        self.logits.copy_(self.model.head(self.model.model.final_layernorm(x))[:, 0])
        self.length.add_(1)


def make_graph(model, reading, moves=False):
    """Return a StepGraph that goes on from a Reading, or None where steps are taken one by one."""
    if len(reading.logits) > MOST_ROWS or not graphs.wanted(model.device):
        return None
    return StepGraph(model, reading, moves)
