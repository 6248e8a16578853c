#!/usr/bin/env bash
# Zero-shot CLIP, few-shot: bash scripts/zsclip/main.sh DATASET [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run zsclip main "$@"
