#!/usr/bin/env bash
# NAP-Tuning, cross-dataset: bash scripts/naptuning/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning xd "$@"
