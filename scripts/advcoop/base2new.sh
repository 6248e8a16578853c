#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advcoop base2new "$@" # AdvCoOp, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
