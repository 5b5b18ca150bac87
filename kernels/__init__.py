"""Kernels of hybridna: five ops, each with a slow definition and faster backends (`dispatch.py`).

Installs as `hybridna_kernels`; nothing imports `kernels`.
"""

# transformers probes any package called `kernels`, also this folder when run from the repository root, and reads this.
__version__ = "0.1.0"
