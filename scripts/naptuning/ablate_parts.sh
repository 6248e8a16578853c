#!/usr/bin/env bash
# NAP-Tuning whole, without prompts, without refiners: bash scripts/naptuning/ablate_parts.sh DATASET SHOTS [CFG] [KEY VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run naptuning ablate_parts "$@"
