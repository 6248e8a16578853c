#!/usr/bin/env bash
# CAPT, few-shot: bash scripts/capt/main.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/capt/main.sh pets 16
# Few shots need fewer epochs than the configs' 100; tiny configs have their own number.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
epochs=""
case $(config_for "${3:-}" 2>/dev/null)/${2:-} in
  tiny*) ;;
  */1) epochs=20 ;;
  */2 | */4) epochs=50 ;;
esac
if [ -n "$epochs" ] && [[ " $* " != *" OPTIM.MAX_EPOCH "* ]]; then
  set -- "$@" OPTIM.MAX_EPOCH "$epochs"
fi
few_shot CAPT "$@"
