#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advpt dg "$@" # AdvPT, domain shift: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
