#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run maple main "$@" # MaPLe, on clean images, few-shot: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
