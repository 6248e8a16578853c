#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tgazsr dg "$@" # TGA-ZSR (configs *_comp: with its complement), domain shift: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
