#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt ablate_terms "$@" # CAPT between its two consistency terms: DATASET SHOTS [CFG] [KEY VALUE ...]
