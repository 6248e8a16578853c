#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run tgazsr base2new "$@" # TGA-ZSR (configs *_comp: with its complement), base-to-novel: DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
