#!/usr/bin/env bash
# AdvIVLP, few-shot: bash scripts/advivlp/main.sh DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advivlp main "$@"
