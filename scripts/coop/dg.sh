#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run coop dg "$@" # CoOp, on clean images, domain shift: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
