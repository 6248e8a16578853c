#!/usr/bin/env bash
# Set up, then run all tests: bash scripts/test.sh [pytest options]
#   bash scripts/test.sh -m "not slow"       the fast ones only
# ADVPROMPT_REAL_DATA: folder with real images in CoOp's layout; tests that need it skip without.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh test
source scripts/active_python.sh
python=${active:-.venv/bin/python}
workers=$(getconf _NPROCESSORS_ONLN)
# one thread per worker: more only fight for the cores
OMP_NUM_THREADS=1 exec "$python" -m pytest -q -n "$((workers < 4 ? workers : 4))" --dist worksteal "$@"
