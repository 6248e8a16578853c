#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning main "$@" # NAP-Tuning, few-shot: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
