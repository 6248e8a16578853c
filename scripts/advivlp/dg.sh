#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advivlp dg "$@" # AdvIVLP, domain shift: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
