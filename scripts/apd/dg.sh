#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run apd dg "$@" # APD, domain shift: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
