#!/usr/bin/env bash
# AdvIVLP, base-to-novel: bash scripts/advivlp/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advivlp base2new "$@"
