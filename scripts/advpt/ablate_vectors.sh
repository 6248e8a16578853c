#!/usr/bin/env bash
# AdvPT over the number of context vectors: bash scripts/advpt/ablate_vectors.sh DATASET SHOTS [CFG] [KEY VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advpt ablate_vectors "$@"
