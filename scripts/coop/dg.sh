#!/usr/bin/env bash
# CoOp, on clean images, domain shift: bash scripts/coop/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run coop dg "$@"
