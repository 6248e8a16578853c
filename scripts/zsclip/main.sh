#!/usr/bin/env bash
# Zero-shot CLIP, the undefended baseline: bash scripts/zsclip/main.sh DATASET [CFG] [KEY VALUE ...]
#   bash scripts/zsclip/main.sh pets
# Nothing is drawn or trained, so one seed says all.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
SEEDS=${SEEDS%% *}
[ $# -ge 1 ] || fail "usage: bash $0 DATASET [CFG] [KEY VALUE ...]"
dataset=$1; shift
if [[ ${1:-} =~ ^[0-9]+$ ]]; then shift; fi # shots mean nothing here
few_shot ZeroshotCLIP "$dataset" 0 "$@"
