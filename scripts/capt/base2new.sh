#!/usr/bin/env bash
# CAPT, base-to-novel: bash scripts/capt/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt base2new "$@"
