#!/usr/bin/env bash
# CAPT, cross-dataset: bash scripts/capt/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt xd "$@"
