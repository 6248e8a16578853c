#!/usr/bin/env bash
# TeCoA (configs *_finetune: the image tower), base-to-novel: bash scripts/tecoa/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tecoa base2new "$@"
