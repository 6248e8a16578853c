#!/usr/bin/env bash
# Install what the project needs: bash scripts/setup.sh [test]     ("test": the tests' needs, too)
# Uses the active virtual environment, else makes .venv in this clone. Needs python3 >= 3.10.
# Repeatable: an environment that is complete is left as it is.
# Machines without an NVIDIA GPU install with constraints-cpu.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
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
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$("$python" --version) in '$python' is too old; activate an environment with Python 3.10 or newer"

constraint=(-c constraints-cpu.txt)
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then constraint=(); fi

extra=${1:+[$1]}
needs=$(cat setup.py pyproject.toml constraints-cpu.txt | cksum | cut -d' ' -f1)
stamp=$("$python" -c 'import sys; print(sys.prefix)')/.advprompt-${1:-run}-$needs-$(pwd | cksum | cut -d' ' -f1)
complete='import os, sys; from importlib.util import find_spec as f
ours = (s := f("advprompt")) and os.path.samefile(os.path.dirname(s.origin), "trainers")
sys.exit(not (ours and f("open_clip") and f("yacs") and f("torchattacks")))'
if [ -e "$stamp" ] && "$python" -c "$complete" 2>/dev/null; then
  echo "== the environment is complete ($python)"
else
  echo "== installing into $("$python" -c 'import sys; print(sys.prefix)') (a few minutes at first)"
  "$python" -m pip install "${constraint[@]}" -e ".$extra"
  # without its pins, which would put an old requests into the environment; it needs nothing else of its own
  "$python" -m pip install --no-deps torchattacks
  touch "$stamp"
fi
