#!/usr/bin/env bash
# APD, few-shot: bash scripts/apd/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run apd main "$@"
