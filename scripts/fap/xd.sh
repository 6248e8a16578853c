#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run fap xd "$@" # FAP, cross-dataset: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
