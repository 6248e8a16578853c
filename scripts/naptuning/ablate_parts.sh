#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning ablate_parts "$@" # NAP-Tuning whole, without prompts, without refiners: DATASET SHOTS [CFG] [KEY VALUE ...]
