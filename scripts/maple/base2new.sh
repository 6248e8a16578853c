#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run maple base2new "$@" # MaPLe, on clean images, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
