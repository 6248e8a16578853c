#!/usr/bin/env bash
# NAP-Tuning, base-to-novel: bash scripts/naptuning/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/naptuning/base2new.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
base_to_new NAPTuning "$@"
