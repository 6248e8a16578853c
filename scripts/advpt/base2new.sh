#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advpt base2new "$@" # AdvPT, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
