#!/usr/bin/env bash
# CAPT over the rule that weighs its two consistency terms: bash scripts/capt/ablate_alpha.sh DATASET SHOTS [CFG] [KEY VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt ablate_alpha "$@"
