#!/usr/bin/env bash
# AdvMaPLe, few-shot: bash scripts/advmaple/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advmaple main "$@"
