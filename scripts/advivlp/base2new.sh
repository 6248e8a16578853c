#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advivlp base2new "$@" # AdvIVLP, base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
