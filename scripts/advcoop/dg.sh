#!/usr/bin/env bash
# AdvCoOp, domain shift: bash scripts/advcoop/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advcoop dg "$@"
