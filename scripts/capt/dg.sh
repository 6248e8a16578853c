#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt dg "$@" # CAPT, domain shift: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
