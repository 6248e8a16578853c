#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advpt ablate_vectors "$@" # AdvPT over the number of context vectors: DATASET SHOTS [CFG] [KEY VALUE ...]
