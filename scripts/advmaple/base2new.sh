#!/usr/bin/env bash
# AdvMaPLe, base-to-novel: bash scripts/advmaple/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advmaple/base2new.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
base_to_new AdvMaPLe "$@"
