#!/usr/bin/env bash
# Install what the project needs: bash scripts/setup.sh [test]     ("test": the tests' needs, too)
# Uses the active virtual environment, else makes .venv. A complete environment is left as it is.
set -euo pipefail; cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "error: $1" >&2; exit 2; }

source scripts/active_python.sh
base=${PYTHON:-python3} python=$active
if [ -z "$python" ]; then
  python=.venv/bin/python
  command -v "$base" >/dev/null || fail "'$base' is not installed; install Python 3.10 or newer"
  if ! [ -x "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
    echo "== making the virtual environment .venv"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      fail "$("$base" --version) is too old; install Python 3.10 or newer, or set PYTHON to one"
    "$base" -m venv .venv ||
      fail "'$base -m venv' failed; install the venv module (Debian: apt install python3-venv)"
  fi
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "'$python' is too old; activate an environment with Python 3.10 or newer"
# an installed PyTorch stays; without a GPU the CPU build is taken, which is a tenth of the size
index=https://download.pytorch.org/whl/cpu from="from the configured package index"
torch=$("$python" -c 'from importlib.metadata import version; v = version("torch").partition("+")[0]
print(v if [int(n) for n in v.split(".")[:2]] >= [2, 4] else "")' 2>/dev/null || true)
pins=(-c constraints-cpu.txt) choice="PyTorch for the CPU, $from"
if [ -n "$torch" ]; then
  pins=("torch==$torch") choice="PyTorch $torch is installed and stays"
elif command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then
  pins=() choice="PyTorch for a GPU, $from"
elif "$python" -c "import urllib.request as u; u.urlopen('$index/torch/', timeout=3)" 2>/dev/null; then
  pins+=(--extra-index-url "$index") choice="PyTorch for the CPU, from PyTorch's own index"
fi

extra=${1:+[$1]}
needs=$(cat setup.py pyproject.toml constraints-cpu.txt | cksum | cut -d' ' -f1)
stamp=$("$python" -c 'import sys; print(sys.prefix)')/.advprompt-${1:-run}-$needs-$(pwd | cksum | cut -d' ' -f1)
complete='import os, sys; from importlib.util import find_spec as f; s = f("advprompt")
ours = s and os.path.samefile(os.path.dirname(s.origin), "trainers")
sys.exit(not (ours and f("open_clip") and f("yacs") and f("torchattacks")))'
if [ -e "$stamp" ] && "$python" -c "$complete" 2>/dev/null; then
  echo "== the environment is complete ($python)"
else
  echo "== installing into $("$python" -c 'import sys; print(sys.prefix)') (a few minutes); $choice"
  "$python" -m pip install "${pins[@]}" -e ".$extra"
  # without its pins, which would put an old requests into the environment; it needs nothing else of its own
  "$python" -m pip install --no-deps torchattacks
  touch "$stamp"
fi
