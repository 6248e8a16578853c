#!/usr/bin/env bash
# Zero-shot CLIP, domain shift: bash scripts/zsclip/dg.sh SOURCE [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run zsclip dg "$@"
