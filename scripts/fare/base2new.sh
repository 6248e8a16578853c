#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run fare base2new "$@" # FARE, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
