#!/usr/bin/env bash
# MaPLe, trained on clean images, base-to-novel: bash scripts/maple/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/maple/base2new.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
base_to_new MaPLe "$@"
