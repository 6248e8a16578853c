#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tecoa xd "$@" # TeCoA (configs *_finetune: the image tower), cross-dataset: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
