#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run fare xd "$@" # FARE, cross-dataset: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
