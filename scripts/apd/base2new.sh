#!/usr/bin/env bash
# APD, base-to-novel: bash scripts/apd/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run apd base2new "$@"
