#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tgazsr xd "$@" # TGA-ZSR (configs *_comp: with its complement), cross-dataset: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
