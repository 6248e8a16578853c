#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run coop xd "$@" # CoOp, on clean images, cross-dataset: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
