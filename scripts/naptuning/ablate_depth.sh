#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning ablate_depth "$@" # NAP-Tuning over prompt depth, refiners on and off: DATASET SHOTS [CFG] [KEY VALUE ...]
