#!/usr/bin/env bash
# Every run behind docs/results.md, on the built-in CLIP, its tables, results.csv beside it and the
# page of docs/gallery:
#   DATA=/path/to/data bash scripts/results.sh        DATA holds EuroSAT in CoOp's layout
# Many hours on 2 CPU cores, seed by seed. Finished runs are skipped, cut ones go on; the tables are
# written anew from what is there. PAGE=FILE writes them elsewhere.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# = 0 ] || fail "usage: DATA=/path/to/data bash $0 [--dry-run]"
PAGE=$(absolute "${PAGE:-$REPO/docs/results.md}")
export DATA OUTPUT PYTHON
common=(TEST.SUBSET 200 TEST.PICTURE 0)
tuned="advcoop advvpt advmaple advivlp fap tecoa tecoa_finetune capt apd naptuning"

both() { # CFG: all trainers on both data sets; EuroSAT has a third of the images and twice the epochs
  local whole="" radii=""
  if [ "$1/$SEEDS" = tiny/1 ]; then # AutoAttack whole, and the accuracy over eps, on fewer images
    whole=tiny_eurosat_aa+TEST.SUBSET=60 radii=sweep_eps+TEST.SUBSET=100
  fi
  bash scripts/all.sh shapes 16 "$1" "${common[@]}"
  METHODS="zsclip coop naptuning capt" TESTS=$radii bash scripts/all.sh shapes 16 "$1" "${common[@]}"
  METHODS="zsclip advpt coop maple" TESTS=$whole bash scripts/all.sh eurosat 16 "$1" "${common[@]}"
  METHODS=$tuned TESTS=$whole bash scripts/all.sh eurosat 16 "$1" "${common[@]}" OPTIM.MAX_EPOCH 20
}
novel() { # DATASET [KEY VALUE ...]: base-to-novel on the robust backbone
  PROTOCOL=base2new METHODS="zsclip advmaple capt apd" \
    bash scripts/all.sh "$1" 16 tiny_robust "${common[@]}" "${@:2}"
}
novel_again() { # the same prompts on more images of EuroSAT's new classes, where 200 tell too little;
  # a dry run does not see them, as it counts only what the scripts train
  [ -z "${ADVPROMPT_DRY_RUN_JOBS:-}" ] || return 0
  "$PYTHON" -m advprompt robustness --root "$DATA" --attack-config-file configs/attacks/tiny_eurosat.yaml \
    --model-dir "$OUTPUT"/eurosat/*/tiny_robust_*SUBSAMPLE_CLASSES-new_*/seed"$1" \
    --opts TEST.SUBSET 1000 TEST.PICTURE 0 ATTACK.TEST.LIST "[{'NAME':'pgd','STEPS':20}]"
}
elsewhere() { # the papers' four methods on other classes and other looks than they were trained on
  local protocol
  for protocol in base2new xd dg; do
    PROTOCOL=$protocol METHODS="zsclip advpt naptuning capt apd" \
      bash scripts/all.sh shapes 16 tiny "${common[@]}"
  done
}
settings="advpt/vectors apd/teacher capt/alpha capt/terms naptuning/depth"
ablations() { # one setting over its values, on EuroSAT, under PGD alone; AdvPT's under its own attacks
  local setting backbone keys
  for setting in $settings; do
    keys=(OPTIM.MAX_EPOCH 20 ATTACK.TEST.LIST "[{'NAME': 'pgd'}]")
    backbone=tiny
    case ${setting%/*} in
      advpt) keys=() ;;                   # it tunes on a bank
      capt | apd) backbone=tiny_robust ;; # whose prompts do nothing on tiny
    esac
    bash "scripts/${setting/\//\/ablate_}.sh" eurosat 16 $backbone "${common[@]}" ${keys[@]+"${keys[@]}"}
  done
}
show() { # FOLDER ... -- ARGUMENTS: report what is there, by its path as seen from the repository
  local found=()
  while [ "$1" != -- ]; do [ ! -d "$1" ] || found+=("${1#"$REPO/"}"); shift; done
  shift
  [ ${#found[@]} = 0 ] || report "${found[@]}" "$@"
}
write() { # MARK FOLDER ...: put the tables of what is there into the page
  local mark=$1; shift
  show "$@" -- --format markdown --out "$PAGE" --mark "$mark"
}

for seed in $SEEDS; do
  export SEEDS=$seed
  both tiny
  bash scripts/naptuning/ablate_parts.sh shapes 16 tiny "${common[@]}"
  bash scripts/naptuning/ablate_parts.sh eurosat 16 tiny "${common[@]}" OPTIM.MAX_EPOCH 20
  both tiny_robust
  novel shapes
  novel eurosat OPTIM.MAX_EPOCH 20
  novel_again "$seed"
  elsewhere
  ablations
  for setting in $settings; do
    name=${setting/\//_}
    write $name "$OUTPUT/ablations/$name/eurosat"
    curve=$OUTPUT/ablations/$name/eurosat/curve.png
    [ -n "${ADVPROMPT_DRY_RUN_JOBS:-}" ] || [ ! -e "$curve" ] ||
      install -D -m 644 "$curve" "$(dirname "$PAGE")/images/$name.png"
  done
  for name in shapes eurosat; do
    write $name "$OUTPUT/$name" "$OUTPUT/${name}_"*
    write parts-$name "$OUTPUT/ablations/naptuning_parts/$name"
  done
  show "$OUTPUT" -- --format csv --out "${PAGE%.md}.csv"
  [ -n "${ADVPROMPT_DRY_RUN_JOBS:-}" ] || mkdir -p "$(dirname "$PAGE")/gallery"
  show "$OUTPUT/shapes" "$OUTPUT/shapes_"* -- --format html --out "$(dirname "$PAGE")/gallery/index.html"
done
