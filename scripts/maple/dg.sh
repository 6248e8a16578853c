#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run maple dg "$@" # MaPLe, on clean images, domain shift: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
