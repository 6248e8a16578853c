#!/usr/bin/env bash
# CAPT between its two consistency terms: bash scripts/capt/ablate_terms.sh DATASET SHOTS [CFG] [KEY VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt ablate_terms "$@"
