#!/usr/bin/env bash
# MaPLe, on clean images, base-to-novel: bash scripts/maple/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run maple base2new "$@"
