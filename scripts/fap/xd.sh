#!/usr/bin/env bash
# FAP, cross-dataset: bash scripts/fap/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run fap xd "$@"
