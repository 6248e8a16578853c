#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run capt ablate_alpha "$@" # CAPT over the rule that weighs its two consistency terms: DATASET SHOTS [CFG] [KEY VALUE ...]
