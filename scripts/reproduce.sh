#!/usr/bin/env bash
# A paper's tables: bash scripts/reproduce.sh advpt|nap|capt|apd [CFG ...] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" reproduce "$@"
