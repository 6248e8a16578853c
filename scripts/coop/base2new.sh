#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run coop base2new "$@" # CoOp, on clean images, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
