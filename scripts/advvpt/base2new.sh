#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advvpt base2new "$@" # AdvVPT, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
