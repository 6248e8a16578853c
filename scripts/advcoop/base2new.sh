#!/usr/bin/env bash
# AdvCoOp, base-to-novel: bash scripts/advcoop/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advcoop base2new "$@"
