#!/usr/bin/env bash
# FAP, few-shot: bash scripts/fap/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run fap main "$@"
