#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run defeat base2new "$@" # DEFEAT, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
