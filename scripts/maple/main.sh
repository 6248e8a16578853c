#!/usr/bin/env bash
# MaPLe, on clean images, few-shot: bash scripts/maple/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run maple main "$@"
