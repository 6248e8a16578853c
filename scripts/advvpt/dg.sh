#!/usr/bin/env bash
# AdvVPT, domain shift: bash scripts/advvpt/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advvpt dg "$@"
