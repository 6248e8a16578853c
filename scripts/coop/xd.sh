#!/usr/bin/env bash
# CoOp, on clean images, cross-dataset: bash scripts/coop/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run coop xd "$@"
