"""The library under every command: `import hybridna_core as hd`.

hd.load_model -> hd.logits | log_probs | embed_sequences | generate_sequences; the commands under their own names.
Names are looked up on first use, so that importing this package loads neither torch nor pysam.
"""

import importlib

_PUBLIC = {
    "load_model": "checkpoint",
    "save_model": "checkpoint",
    "logits": "model.likelihood",
    "log_probs": "model.likelihood",
    "embed": "commands.embed",
    "embed_sequences": "commands.embed",
    "generate": "commands.generate",
    "generate_sequences": "commands.generate",
    "pretrain": "commands.pretrain",
    "finetune": "commands.finetune",
    "predict": "commands.predict",
    "leakage": "commands.leakage",
    "score_variants": "commands.score_variants",
    "merge": "commands.merge",
    "saturate": "commands.saturate",
    "calibrate": "commands.calibrate",
    "verify": "commands.verify",
    "explain": "commands.explain",
    "evaluate_genome": "commands.evaluate_genome",
    "evaluate_coding": "commands.evaluate_coding",
    "evaluate_effects": "commands.evaluate_effects",
    "evaluate_tasks": "commands.evaluate_tasks",
    "evaluate_predictions": "commands.evaluate_predictions",
    "evaluate_design": "commands.evaluate_design",
    "doctor": "commands.doctor",
    "list_models": "commands.models",
    "show_model": "commands.models",
    "import_model": "commands.models",
    "check_model": "commands.models",
}

__all__ = ["HybriDNAError", *_PUBLIC]


def __getattr__(name):
    if name == "HybriDNAError":
        from hybridna_core.errors import HybriDNAError

        return HybriDNAError
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"hybridna_core.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'hybridna_core' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
