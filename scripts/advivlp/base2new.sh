#!/usr/bin/env bash
# AdvIVLP, base-to-novel: bash scripts/advivlp/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/advivlp/base2new.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
base_to_new AdvIVLP "$@"
