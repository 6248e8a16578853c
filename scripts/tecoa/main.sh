#!/usr/bin/env bash
# TeCoA (configs *_finetune: the image tower), few-shot: bash scripts/tecoa/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tecoa main "$@"
