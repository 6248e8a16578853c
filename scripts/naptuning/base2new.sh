#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning base2new "$@" # NAP-Tuning, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
