#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt xd "$@" # CAPT, cross-dataset: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
