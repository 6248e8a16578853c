#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tgazsr main "$@" # TGA-ZSR (configs *_comp: with its complement), few-shot: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
