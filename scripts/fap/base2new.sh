#!/usr/bin/env bash
# FAP, base-to-novel: bash scripts/fap/base2new.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/fap/base2new.sh pets 16
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
base_to_new FAP "$@"
