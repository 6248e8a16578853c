#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run apd base2new "$@" # APD, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
