#!/usr/bin/env bash
# Zero-shot CLIP, cross-dataset: bash scripts/zsclip/xd.sh SOURCE [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run zsclip xd "$@"
