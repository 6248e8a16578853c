#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run fare main "$@" # FARE, few-shot: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
