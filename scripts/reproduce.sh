#!/usr/bin/env bash
# A paper's tables: bash scripts/reproduce.sh advpt|nap|capt|apd [CFG ...] [KEY VALUE ...] [--dry-run]
#   DATA=/path/to/data bash scripts/reproduce.sh capt --dry-run
#   DATASETS=shapes bash scripts/reproduce.sh capt tiny
# docs/protocols.md says which tables these are, and what of them is our choice. Finished runs are
# skipped, cut ones go on. What fails does not stop the rest and is listed in the end (exit code 1).
# DATASETS, SHOTS, SEEDS, METHODS, ATTACKS and TESTS replace the paper's; TESTS= leaves AutoAttack and
# the other tests of finished runs out.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage="usage: bash $0 advpt|nap|capt|apd [CFG ...] [KEY VALUE ...] [--dry-run]"
[ $# -ge 1 ] || fail "$usage"
paper=$1; shift
ten="oxford_pets caltech101 stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"

# attacks: threat models to train and test with. tests, of finished runs: aa is the same threat model
# with AutoAttack, +KEY=VALUE the same with that setting. beyond: protocols with ImageNet as source.
# ablation: a script, run on the first data set.
shots=16 tests=aa beyond="" ablation=""
case $paper in
  advpt) cfgs="vit_b16 vit_l14" methods="zsclip advpt" shots=all attacks=advpt16 beyond=dg
    sets="oxford_flowers oxford_pets food101 sun397 dtd eurosat ucf101 imagenet"
    unseen=+DEFENCE.ADAPTIVE=none # the paper's attacker does not know the defence
    tests="aa rap16 +DEFENCE.NAME=super_resolution$unseen +DEFENCE.NAME=rescale$unseen"
    [ -z "${DIFFPURE:-}" ] || tests+=" +DEFENCE.NAME=diffpure+DEFENCE.MODEL=$DIFFPURE$unseen"
    ablation=advpt/ablate_vectors ;;
  nap) cfgs="vit_b16 vit_b32" methods="zsclip advpt tecoa tecoa_finetune naptuning"
    sets="$ten imagenet" attacks="nap1 nap4" ablation=naptuning/ablate_depth ;;
  capt) cfgs=vit_b16 methods="zsclip capt" shots="1 2 4 8 16 all" attacks=linf4 beyond="xd dg"
    sets="$ten imagenet" ;;
  apd) cfgs=vit_b16 methods="zsclip advpt advvpt advmaple advivlp apd" attacks=linf1
    sets="$ten imagenet" ablation=apd/ablate_teacher ;;
  *) fail "there is no paper '$paper' here; $usage" ;;
esac
from=16
[ "$paper" != advpt ] || from=all
[ -z "${SHOTS:-}" ] || from=${SHOTS##* }

chosen=""
while [ $# -gt 0 ] && [[ $1 != *.* && $1 != SEED ]]; do chosen+=" $1"; shift; done
[ $(($# % 2)) = 0 ] || fail "overrides come in pairs KEY VALUE, but '${*: -1}' stands alone; $usage"
keys=("$@") cfgs=${chosen:-$cfgs} shots=${SHOTS:-$shots} tests=${TESTS-$tests}
chosen_methods=${METHODS:-} methods=${METHODS:-$methods} full="" first="" source=""
PROTOCOL=main
for number in $shots; do
  [[ $number =~ ^(all|[1-9][0-9]*)$ ]] || fail "SHOTS has '$number', expected numbers such as 16, or all"
done
for attack in ${ATTACKS:-}; do
  [ -f "$CONFIGS/attacks/$attack.yaml" ] ||
    fail "there is no threat model '$attack' ($CONFIGS/attacks/$attack.yaml); check ATTACKS"
done
for set in ${DATASETS:-$sets}; do
  set=$(full_name "$set")
  for cfg in $cfgs; do known_words "$set" "$cfg" $methods; done
  full+=" $set" first=${first:-$set}
  if [ -z "$source" ] || [ "$set" = imagenet ]; then source=$set; fi
done
sets=$full
for test in ${TESTS:-}; do # as for data sets: a mistake is said before any work
  test=${test%%+*}
  [ -z "$test" ] || [ "$test" = aa ] || [ -f "$CONFIGS/attacks/$test.yaml" ] ||
    fail "there is no test '$test' ($CONFIGS/attacks/$test.yaml); check TESTS"
done

threats() { # CFG DATASET -> threat models; those of the papers are too strong for the built-in CLIP
  case $paper/$1 in
    advpt/tiny*) echo "${ATTACKS:-advpt_tiny}" ;;
    */tiny*) echo "${ATTACKS:-$(default_attack all "$1" "$2")}" ;;
    *) echo "${ATTACKS:-$attacks}" ;;
  esac
}

note() { # SENTENCE, to stderr, once
  case $noted in *"$1"*) ;; *) noted+="$1 " && echo "note: $1" >&2 ;; esac
}
noted=""

choose_tests() { # CFG ATTACK: set TESTS of train to those of $tests that apply
  local test
  TESTS=""
  for test in $tests; do
    case $test in aa | aa+*) test=${2}_$test ;; +*) test=$2$test ;; esac
    case $1/$test in
      tiny*/rap*) note "test $test is left out: its surrogate takes larger images than config '$1'" ;;
      *) if [ -f "$CONFIGS/attacks/${test%%+*}.yaml" ]; then TESTS+="$test "; else
        note "test $test is left out: there is no $CONFIGS/attacks/${test%%+*}.yaml"
      fi ;;
    esac
  done
}

part() { # PROTOCOL CFG DATASET SHOTS: all methods under every threat model
  local attack own=()
  local -x SOURCE_ONLY=${SOURCE_ONLY:-}
  if [ "$paper/$3" = advpt/imagenet ]; then # its paper's schedule, and test images, there
    own=(OPTIM.MAX_EPOCH 5 DATALOADER.TRAIN_X.BATCH_SIZE 512)
    case " ${keys[*]-} " in
      *" TEST.SUBSET "* | *" TEST.FIRST "*) ;;
      *) own+=(TEST.SUBSET 1000) SOURCE_ONLY+=" TEST.SUBSET" ;; # its shifts are tested whole
    esac
  fi
  for attack in $(threats "$2" "$3"); do
    export PROTOCOL=$1 METHODS=$methods ATTACK=$attack TESTS
    choose_tests "$2" "$attack"
    attempt "$1/$3/$2/$attack/$4shots" bash "$SCRIPTS/all.sh" "$3" "$4" "$2" \
      ${own[@]+"${own[@]}"} ${keys[@]+"${keys[@]}"}
  done
}

export DATA OUTPUT SEEDS PYTHON
[ -n "$chosen_methods" ] || export ADVPROMPT_LENIENT=1 # a paper's method that has no config CFG is left out
needed=$sets protocols=$beyond beyond=""
for protocol in $protocols; do
  if targets=$(targets_of "$protocol" "$source" 2>/dev/null); then
    needed+=" $targets" beyond+=" $protocol"
  else
    echo "note: $protocol is left out: prompts from '$source' have no known targets; set TARGETS" >&2
  fi
done
needed=$(printf '%s\n' $needed | grep -v '^shapes' | sort -u) || true
if [ -n "$needed" ]; then "$PYTHON" -m "$PACKAGE" data check $needed || true; fi

for cfg in $cfgs; do
  for set in $sets; do
    for number in $shots; do part main "$cfg" "$set" "$number"; done
  done
  for protocol in $beyond; do part "$protocol" "$cfg" "$source" "$from"; done
  if [ -n "$ablation" ]; then
    ATTACK=$(threats "$cfg" "$first") && ATTACK=${ATTACK%% *} TESTS=""
    attempt "$ablation/$first/$cfg" bash "$SCRIPTS/$ablation.sh" "$first" "$from" "$cfg" \
      ${keys[@]+"${keys[@]}"}
  fi
done
if [ -n "$failed" ]; then
  echo "error: these did not finish, see above:$failed" >&2
  exit 1
fi
