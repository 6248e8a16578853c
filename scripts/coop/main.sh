#!/usr/bin/env bash
# CoOp, on clean images, few-shot: bash scripts/coop/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run coop main "$@"
