#!/usr/bin/env bash
# APD, domain shift: bash scripts/apd/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run apd dg "$@"
