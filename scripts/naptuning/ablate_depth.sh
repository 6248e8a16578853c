#!/usr/bin/env bash
# NAP-Tuning over prompt depth, refiners on and off: bash scripts/naptuning/ablate_depth.sh DATASET SHOTS [CFG] [KEY VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning ablate_depth "$@"
