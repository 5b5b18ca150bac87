"""Imported by the server that forks the runs of storm.py: a run of two steps loads and readies all that they need."""

import logging
import tempfile

from runs import lay_out

from hybridna_core.commands.pretrain import pretrain

logging.disable()
with tempfile.TemporaryDirectory() as folder:
    pretrain(lay_out(folder), device="cpu", set=["stage.0.steps=1", "stage.1.steps=1", "optim.warmup_steps=0"])
logging.disable(logging.NOTSET)
