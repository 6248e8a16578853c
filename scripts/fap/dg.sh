#!/usr/bin/env bash
# FAP, domain shift: bash scripts/fap/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run fap dg "$@"
