#!/usr/bin/env bash
# Every run behind docs/results.md, on the built-in CLIP, its tables and results.csv beside it:
#   DATA=/path/to/data bash scripts/results.sh        DATA holds EuroSAT in CoOp's layout
# Many hours on 2 CPU cores, seed by seed. Finished runs are skipped, cut ones go on; the tables are
# written anew from what is there. PAGE=FILE writes them elsewhere.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
PAGE=$(absolute "${PAGE:-$REPO/docs/results.md}")
export DATA OUTPUT PYTHON
common=(TEST.SUBSET 200 TEST.PICTURE 0)
tuned="advcoop advvpt advmaple advivlp fap tecoa tecoa_finetune capt apd naptuning"

both() { # CFG: all trainers on both data sets; EuroSAT has a third of the images and twice the epochs
  bash scripts/all.sh shapes 16 "$1" "${common[@]}"
  METHODS="zsclip advpt coop maple" bash scripts/all.sh eurosat 16 "$1" "${common[@]}"
  METHODS=$tuned bash scripts/all.sh eurosat 16 "$1" "${common[@]}" OPTIM.MAX_EPOCH 20
}
novel() { # DATASET [KEY VALUE ...]: base-to-novel on the robust backbone
  PROTOCOL=base2new METHODS="zsclip advmaple capt apd" \
    bash scripts/all.sh "$1" 16 tiny_robust "${common[@]}" "${@:2}"
}
write() { # MARK FOLDER: put the tables of what is there into the page
  [ ! -d "$2" ] || report "$2" --format markdown --out "$PAGE" --mark "$1"
}

for seed in $SEEDS; do
  export SEEDS=$seed
  both tiny
  bash scripts/naptuning/ablate_parts.sh shapes 16 tiny "${common[@]}"
  bash scripts/naptuning/ablate_parts.sh eurosat 16 tiny "${common[@]}" OPTIM.MAX_EPOCH 20
  both tiny_robust
  novel shapes
  novel eurosat OPTIM.MAX_EPOCH 20
  for name in shapes eurosat; do
    write $name "$OUTPUT/$name"
    write parts-$name "$OUTPUT/ablations/naptuning_parts/$name"
  done
  report "$OUTPUT" --format csv --out "${PAGE%.md}.csv"
done
