#!/usr/bin/env bash
# Check and time the Triton kernels on a CUDA machine that has torch and Triton; nothing needs to be installed beside them.
#   kernels/gpu_check.sh [--out FOLDER]             everything, under 9 minutes
#   kernels/gpu_check.sh parity|time|table          one part at a time, in this order
# Ends with 0, 1 (a kernel computes wrong numbers) or 5 (no CUDA device, or no Triton).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
# The folder is imported under the name that it installs as; as a script's own folder it would hide Triton.
ln -s "$here" "$links/hybridna_kernels"
PYTHONPATH="$links${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" -m hybridna_kernels.gpu_check "$@"
