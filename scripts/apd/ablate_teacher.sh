#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run apd ablate_teacher "$@" # APD over what its teacher is: DATASET SHOTS [CFG] [KEY VALUE ...]
