#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tecoa dg "$@" # TeCoA (configs *_finetune: the image tower), domain shift: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
