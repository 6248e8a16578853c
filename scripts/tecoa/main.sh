#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tecoa main "$@" # TeCoA (configs *_finetune: the image tower), few-shot: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
