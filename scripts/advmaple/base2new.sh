#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advmaple base2new "$@" # AdvMaPLe, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
