#!/usr/bin/env bash
# AdvPT, base-to-novel: bash scripts/advpt/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advpt base2new "$@"
