#!/usr/bin/env bash
# APD, cross-dataset: bash scripts/apd/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run apd xd "$@"
