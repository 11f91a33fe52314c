#!/usr/bin/env bash
# Builds and installs the package for another Python, with the newest packages that it finds, and runs there the unit
# tests of what needs neither Horovod nor a framework. Usage: try_python.sh PYTHON...
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

[[ $# -gt 0 ]] || { echo "usage: $0 PYTHON..., for instance python3.9 /opt/python3.13/bin/python3" >&2; exit 2; }
tests=()
for name in battery core cost dgc methods method_formulas plan quantisers registry traffic; do tests+=("$root/tests/unit/test_$name.py"); done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for python in "$@"; do
  rm -rf "$folder/venv"
  "$python" -m venv "$folder/venv"
  HOROVOD_DGC_WITH_TENSORFLOW=0 HOROVOD_DGC_WITH_CUDA=0 "$folder/venv/bin/python" -m pip install -qq "$root[plan]" pytest hypothesis safetensors
  "$folder/venv/bin/python" -c 'import sys, numpy; print("Python", sys.version.split()[0], "NumPy", numpy.__version__)'
  # From elsewhere: in the tree, Python would import the tree's package instead.
  (cd "$folder" && venv/bin/pytest -c "$root/pyproject.toml" -q -p no:cacheprovider "${tests[@]}" 2>&1 | tail -n 3)
done
