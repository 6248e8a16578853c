#!/usr/bin/env bash
# AdvIVLP, domain shift: bash scripts/advivlp/dg.sh SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advivlp dg "$@"
