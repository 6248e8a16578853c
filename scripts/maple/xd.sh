#!/usr/bin/env bash
# MaPLe, on clean images, cross-dataset: bash scripts/maple/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run maple xd "$@"
