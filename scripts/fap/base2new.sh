#!/usr/bin/env bash
# FAP, base-to-novel: bash scripts/fap/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run fap base2new "$@"
