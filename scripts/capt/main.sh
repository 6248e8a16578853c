#!/usr/bin/env bash
# CAPT, few-shot: bash scripts/capt/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt main "$@"
