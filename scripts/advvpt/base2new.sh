#!/usr/bin/env bash
# AdvVPT, base-to-novel: bash scripts/advvpt/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advvpt base2new "$@"
