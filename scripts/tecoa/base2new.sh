#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tecoa base2new "$@" # TeCoA (configs *_finetune: the image tower), base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
