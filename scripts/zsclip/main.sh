#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run zsclip main "$@" # Zero-shot CLIP, few-shot: DATASET [CFG] [KEY VALUE ...] [--dry-run]
