#!/usr/bin/env bash
# NAP-Tuning, few-shot: bash scripts/naptuning/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning main "$@"
