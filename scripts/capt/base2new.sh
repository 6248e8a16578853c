#!/usr/bin/env bash
# CAPT, base-to-novel: bash scripts/capt/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/capt/base2new.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/epochs.sh"
base_to_new CAPT "$@" ${epochs[@]+"${epochs[@]}"}
