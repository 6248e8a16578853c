#!/usr/bin/env bash
# AdvCoOp, few-shot: bash scripts/advcoop/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advcoop main "$@"
