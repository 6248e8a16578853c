#!/usr/bin/env bash
# AdvPT, domain shift: bash scripts/advpt/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advpt dg "$@"
