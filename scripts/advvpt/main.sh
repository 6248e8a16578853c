#!/usr/bin/env bash
# AdvVPT, few-shot: bash scripts/advvpt/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advvpt main "$@"
