#!/usr/bin/env bash
# TeCoA (configs *_finetune: the image tower), cross-dataset: bash scripts/tecoa/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tecoa xd "$@"
