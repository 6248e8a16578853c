#!/usr/bin/env bash
# NAP-Tuning, base-to-novel: bash scripts/naptuning/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning base2new "$@"
