"""Signals that end a training run: noted, so that the step in hand is finished if that does not take too long.

SIGTERM and its kin -> number noted -> step ends, or is abandoned after a while -> snapshot -> Stopped
"""

import contextlib
import signal
import threading
import time

from hybridna_core.errors import Stopped
from hybridna_core.train.parallel import ALONE

# Seconds that a step gets to end by itself: torchrun and most batch systems kill 30 s after the signal.
STEP_LIMIT = 12.0


class Abandoned(Exception):
    """A signal came and the step in hand did not end in time."""


class Signals:
    """Note SIGINT, SIGTERM and their kin, so that the step in hand is finished; a second SIGINT stops at once.

    number    of the signal that came, None so far
    patience  seconds in which a second SIGINT counts as the first, as torchrun passes on what the terminal sent to all
    alone     no other process would wait for this one, so that a long step may be abandoned
    """

    def __init__(self, patience=0.0, alone=False):
        self.number, self.patience, self.alone, self._since = None, patience, alone, None
        self._may_break = False

    def __enter__(self):
        self.number = None
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
                number = getattr(signal, name, None)
                # nohup and a shell's background jobs ignore signals on purpose.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._note)
            if self.alone and hasattr(signal, "SIGALRM"):
                self._old[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._break)
        return self

    def _note(self, number, _frame):
        now = time.monotonic()
        if self.number == number == signal.SIGINT and now - self._since >= self.patience:
            raise KeyboardInterrupt
        if self.number is None and self.alone and hasattr(signal, "SIGALRM"):
            # Again and again, as it may come when nothing can be abandoned.
            signal.setitimer(signal.ITIMER_REAL, STEP_LIMIT, 0.5)
        self.number, self._since = number, now

    def _break(self, _number, _frame):
        if self._may_break:
            self._may_break = False
            raise Abandoned

    @contextlib.contextmanager
    def breakable(self):
        """Let what is done inside be abandoned when it goes on for too long after a signal."""
        self._may_break = True
        try:
            yield
        finally:
            self._may_break = False

    def agree(self, world):
        """Learn of a signal that came to any rank."""
        if world.size > 1:
            self.number = next((int(n) for (n,) in world.gather_numbers(self.number or 0) if n), None)

    def check(self, step, world=ALONE):
        """Raise Stopped if a signal came; every step up to `step` is saved."""
        if self.number is not None:
            name = signal.Signals(self.number).name
            hint = "the same command goes on from here"
            what = f"stopped by {name}, saved" if step else f"stopped by {name} before the first step was done"
            error = Stopped(what, signal_number=self.number, where=f"step {step}", hint=hint)
            raise world.spoken(error)

    def __exit__(self, *_):
        if getattr(signal, "SIGALRM", None) in self._old:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, old in self._old.items():
            signal.signal(number, old)
