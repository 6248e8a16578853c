#!/usr/bin/env bash
# AdvCoOp, cross-dataset: bash scripts/advcoop/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advcoop xd "$@"
