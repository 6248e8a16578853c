#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run defeat xd "$@" # DEFEAT, cross-dataset: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
