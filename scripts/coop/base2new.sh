#!/usr/bin/env bash
# CoOp, on clean images, base-to-novel: bash scripts/coop/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run coop base2new "$@"
