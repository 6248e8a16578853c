#!/usr/bin/env bash
# MaPLe, on clean images, domain shift: bash scripts/maple/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run maple dg "$@"
