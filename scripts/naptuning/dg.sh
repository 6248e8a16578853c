#!/usr/bin/env bash
# NAP-Tuning, domain shift: bash scripts/naptuning/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning dg "$@"
