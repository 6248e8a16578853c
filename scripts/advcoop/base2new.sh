#!/usr/bin/env bash
# AdvCoOp (APT), base-to-novel: bash scripts/advcoop/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advcoop/base2new.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
base_to_new AdvCoOp "$@"
