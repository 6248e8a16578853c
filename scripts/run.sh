#!/usr/bin/env bash
# What the other scripts call: `python -m advprompt COMMAND ...`, by the right Python in the right folder.
#   bash scripts/run.sh COMMAND ...
# Works in the clone and, copied to scripts/advprompt, in a fork. Variables: docs/protocols.md.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ "${scripts##*/}" = advprompt ]; then
  root=$(cd "$scripts/../.." && pwd) package=trainers.advprompt code=""
  advice="activate the fork's environment"
else
  root=$(cd "$scripts/.." && pwd) package=advprompt code=$(cd "$scripts/.." && pwd)/trainers
  advice="run 'bash scripts/setup.sh'"
fi
for name in DATA OUTPUT PAGE; do # relative to where the script was called
  case ${!name:-} in "" | /* | "~"*) ;; *) export "$name=$PWD/${!name}" ;; esac
done
if [ -z "${PYTHON:-}" ]; then
  source "$scripts/active_python.sh"
  PYTHON=${active:-$root/.venv/bin/python}
  [ -x "$PYTHON" ] || PYTHON=python3
fi
cd "$root"
"$PYTHON" -c '
import os, sys
from importlib.util import find_spec as find
ours = not sys.argv[1] or os.path.samefile(os.path.dirname(find("advprompt").origin), sys.argv[1])
sys.exit(not (ours and find("torch") and find("yacs")))' "$code" 2>/dev/null || {
  echo "error: '$PYTHON' lacks the requirements or has another clone's advprompt; $advice or set" \
    "PYTHON to another interpreter" >&2
  exit 2
}
exec "$PYTHON" -m "$package" "$@"
