#!/usr/bin/env bash
# AdvMaPLe, base-to-novel: bash scripts/advmaple/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advmaple base2new "$@"
