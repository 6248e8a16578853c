#!/usr/bin/env bash
# CAPT, domain shift: bash scripts/capt/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt dg "$@"
