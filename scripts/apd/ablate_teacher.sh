#!/usr/bin/env bash
# APD over what its teacher is: bash scripts/apd/ablate_teacher.sh DATASET SHOTS [CFG] [KEY VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run apd ablate_teacher "$@"
