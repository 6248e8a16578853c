#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run fap base2new "$@" # FAP, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
