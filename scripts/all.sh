#!/usr/bin/env bash
# Every trainer under one threat model: bash scripts/all.sh DATASET SHOTS [CFG] [KEY VALUE ...]
#   bash scripts/all.sh shapes 16 tiny
# Finished runs are skipped, cut ones go on; --dry-run only says what there is to do.
# METHODS chooses some: METHODS="zsclip apd"; else those without a config CFG are left out.
# PROTOCOL chooses the scripts: main, base2new, xd or dg.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
command_line "$@"
lenient=${ADVPROMPT_LENIENT:-}
[ -n "${METHODS:-}" ] || lenient=1
METHODS=${METHODS:-zsclip advpt coop maple advcoop advvpt advmaple advivlp fap tecoa tecoa_finetune capt apd naptuning}
PROTOCOL=${PROTOCOL:-main}
known_words "$dataset" "$cfg" $METHODS
export DATA OUTPUT SEEDS PYTHON PROTOCOL ATTACK=${ATTACK:-$(default_attack all "$cfg" "$dataset")}
for method in $METHODS; do
  own=() script=${method%_finetune} with=$cfg
  [ "$script" = "$method" ] || with=${cfg}_finetune
  if [ "$method" = advpt ] && [[ $ATTACK != advpt* && $ATTACK != rap* ]]; then
    # its bank is made without text, whatever the test is
    case $cfg in tiny*) own=(ATTACK.TRAIN.EPS 2/255 ATTACK.TRAIN.ALPHA 0.25/255) ;;
      *) own=(ATTACK.TRAIN.EPS 8/255 ATTACK.TRAIN.ALPHA 1/255) ;; esac
    own+=(ATTACK.TRAIN.STEPS 10
      ATTACK.TRAIN.OBJECTIVE embedding_kl ATTACK.TRAIN.TARGET embedding)
    case $ATTACK in nap*) own+=(ATTACK.TRAIN.START uniform) ;; esac # embedding_kl is flat at zero
  fi
  trainer=$(ls "$CONFIGS/trainers" | grep -ix "$script") || true # zsclip's is called otherwise
  if [ -n "$lenient" ] && [ -n "$trainer" ] && [ ! -f "$CONFIGS/trainers/$trainer/$with.yaml" ]; then
    echo "note: $trainer has no config '$with' and is left out"
    continue
  fi
  attempt "$method" bash "$SCRIPTS/$script/$PROTOCOL.sh" "$dataset" "$shots" "$with" \
    ${own[@]+"${own[@]}"} ${opts[@]+"${opts[@]}"}
done
[ -z "$failed" ] || fail "these did not finish, see above:$failed"
