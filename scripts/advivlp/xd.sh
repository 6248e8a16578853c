#!/usr/bin/env bash
# AdvIVLP, cross-dataset: bash scripts/advivlp/xd.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advivlp xd "$@"
