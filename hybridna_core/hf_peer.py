"""Other people's models in local transformers folders, read as they stand: sequences in, one vector each out.

folder -> AutoTokenizer, AutoModel, no network, no remote code unless allowed -> last hidden states -> pooled vectors
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from hybridna_core.checkpoint import choose_device, sha256
from hybridna_core.errors import DataError, GuardError, ModelError, SystemFault

PREFIX = "hf:"


def is_peer(model):
    """Tell whether a model's name means a transformers folder: hf:FOLDER."""
    return isinstance(model, str) and model.startswith(PREFIX)


class Peer:
    """A model that embeds sequences, and its name and digest.

    folder             local folder of a transformers model and its tokenizer
    allow_remote_code  run the folder's own Python code, which can do anything
    Raises SystemFault without transformers or the folder, ModelError for one that cannot be loaded.
    """

    def __init__(self, folder, *, device="auto", allow_remote_code=False):
        folder = Path(folder.removeprefix(PREFIX))
        if not (folder / "config.json").is_file():
            raise SystemFault("no config.json", where=folder, hint="hf:FOLDER is a local transformers folder")
        try:
            import transformers
        except ImportError:
            raise SystemFault("hf: models need transformers, which is not installed",
                              hint="pip install transformers") from None  # fmt: skip
        needs_code = "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if needs_code and not allow_remote_code:
            hint = "read its .py files, then give --allow-remote-code"
            raise ModelError("wants to run Python code of its own", where=folder, hint=hint)
        self.name, self.device = folder.resolve().name, choose_device(device)
        options = {"local_files_only": True, "trust_remote_code": allow_remote_code}
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            self.model = transformers.AutoModel.from_pretrained(folder, **options).eval().to(self.device)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            what = f"cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})"
            raise ModelError(what, where=folder) from None
        weights = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".bin", ".json", ".py", ".txt")]
        self.digest = hashlib.sha256("".join(sha256(p) for p in weights).encode()).hexdigest()

    def _is_lost(self, ids, mask):
        """Tell whether a third of a sequence's tokens, or more, are the unknown one."""
        unknown = ((ids == self.tokenizer.unk_token_id) & (mask == 1)).sum(1)
        return bool((3 * unknown >= mask.sum(1)).any())

    def embed(self, sequences, reading="mean", batch_size=16, progress=None):
        """Return (n, hidden) float32: the mean over a sequence's tokens, or the last one; special tokens left out."""
        import torch

        found = []
        limit = self.tokenizer.model_max_length
        places = getattr(self.model.config, "max_position_embeddings", None)
        limit = min(limit, places) if isinstance(places, int) and places > 0 else limit
        for first in range(0, len(sequences), batch_size):
            some = list(sequences[first : first + batch_size])
            kept = self.tokenizer(some, padding=True, return_tensors="pt", return_special_tokens_mask=True)
            if kept["input_ids"].shape[1] > limit:
                what = f"{kept['input_ids'].shape[1]:,} tokens, this model reads {limit:,}"
                raise DataError(what, where=f"sequences {first + 1} to {first + len(some)}")
            special = kept.pop("special_tokens_mask").to(self.device)
            if self.tokenizer.unk_token_id is not None and self._is_lost(kept["input_ids"], kept["attention_mask"]):
                hint = "bases in upper or lower case, words of one length? See the model's card"
                raise DataError("its tokenizer does not know a sequence's letters", where=self.name, hint=hint)
            kept.pop("token_type_ids", None)
            kept = kept.to(self.device)
            mask = kept["attention_mask"] * (1 - special)
            # A tokenizer that calls everything special (all unknown) leaves the padding mask.
            mask = torch.where(mask.sum(1, keepdim=True) > 0, mask, kept["attention_mask"])
            with torch.no_grad():
                out = self.model(**kept)
            hidden = (out[0] if isinstance(out, tuple) else out.last_hidden_state).float()
            if reading == "last":
                last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
                vectors = hidden[torch.arange(len(some), device=mask.device), last]
            else:
                vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            found.append(vectors.cpu().numpy())
            if progress is not None:
                progress(first + len(some), len(sequences), note="reading sequences")
        found = np.concatenate(found).astype(np.float32)
        if not np.isfinite(found).all():
            raise GuardError("the model's output is not finite", where=self.name, hint="check its weights")
        return found
