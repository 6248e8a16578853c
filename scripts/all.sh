#!/usr/bin/env bash
# Every trainer under one threat model: bash scripts/all.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/all.sh shapes 16 tiny
# Finished runs are skipped, cut ones go on; --dry-run only says what there is to do.
# METHODS chooses some: METHODS="zsclip apd"; else those without a config CFG are left out.
# PROTOCOL chooses the scripts: main, base2new, xd or dg.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -ge 2 ] || fail "usage: bash $0 DATASET SHOTS [CFG] [KEY VALUE ...]"
chosen=${METHODS:-}
METHODS=${METHODS:-zsclip advpt coop maple advcoop advvpt advmaple advivlp fap tecoa tecoa_finetune capt apd naptuning}
words=("$1" "$2"); shift 2
cfg=$(config_for "${1:-}")
[ "$cfg" != "${1:-}" ] || shift
export DATA OUTPUT SEEDS PYTHON ATTACK=${ATTACK:-$(default_attack all "$cfg" "$(full_name "${words[0]}")")}
for method in $METHODS; do
  own=()
  if [ "$method" = advpt ] && [[ $ATTACK != advpt* && $ATTACK != rap* ]]; then
    # its bank is made without text, whatever the test is
    case $cfg in tiny*) own=(ATTACK.TRAIN.EPS 2/255 ATTACK.TRAIN.ALPHA 0.25/255) ;;
      *) own=(ATTACK.TRAIN.EPS 8/255 ATTACK.TRAIN.ALPHA 1/255) ;; esac
    own+=(ATTACK.TRAIN.STEPS 10
      ATTACK.TRAIN.OBJECTIVE embedding_kl ATTACK.TRAIN.TARGET embedding)
    case $ATTACK in nap*) own+=(ATTACK.TRAIN.START uniform) ;; esac # embedding_kl is flat at zero
  fi
  with=$cfg
  if [ "$method" = tecoa_finetune ]; then method=tecoa with=${cfg}_finetune; fi
  trainer=$(ls "$CONFIGS/trainers" | grep -ix "$method") || true # zsclip's is called otherwise
  if [ -z "$chosen" ] && [ -n "$trainer" ] && [ ! -f "$CONFIGS/trainers/$trainer/$with.yaml" ]; then
    echo "note: $trainer has no config '$with' and is left out"
    continue
  fi
  attempt "$method" bash "$SCRIPTS/$method/${PROTOCOL:-main}.sh" "${words[@]}" "$with" \
    ${own[@]+"${own[@]}"} "$@"
done
[ -z "$failed" ] || fail "these did not finish, see above:$failed"
