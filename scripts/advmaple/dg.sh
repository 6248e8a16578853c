#!/usr/bin/env bash
# AdvMaPLe, domain shift: bash scripts/advmaple/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advmaple dg "$@"
