#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advmaple dg "$@" # AdvMaPLe, domain shift: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
