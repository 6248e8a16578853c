#!/usr/bin/env bash
# AdvMaPLe, cross-dataset: bash scripts/advmaple/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advmaple xd "$@"
