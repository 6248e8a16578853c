#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt base2new "$@" # CAPT, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
