#!/usr/bin/env bash
# AdvVPT, cross-dataset: bash scripts/advvpt/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advvpt xd "$@"
