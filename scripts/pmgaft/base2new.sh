#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run pmgaft base2new "$@" # PMG-AFT, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
