#!/usr/bin/env bash
# AdvPT, cross-dataset: bash scripts/advpt/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advpt xd "$@"
