#!/usr/bin/env bash
# AdvPT, few-shot: bash scripts/advpt/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advpt main "$@"
