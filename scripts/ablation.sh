# Shared by the ablation scripts; sourced, never run. They take the command line of main.sh, and
# VALUES="..." to run other values than their own. Runs, table and curve.png go to
# $OUTPUT/ablations/NAME/DATASET, apart from the main results.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ablation() { # NAME TRAINER DATASET SHOTS [CFG] [KEY VALUE ...]: read the command line
  OUTPUT=$OUTPUT/ablations/$1 trainer=$2; shift 2
  command_line "$@"
}

sweep() { # KEY "VALUE ..." [KEY VALUE ...]: every value, every seed
  local key=$1 values=${VALUES:-$2} value seed; shift 2
  [[ " ${opts[*]-} " != *" $key "* ]] || fail "$key is what this ablation varies; set VALUES instead"
  for value in $values; do
    for seed in $SEEDS; do
      train "$trainer" "$dataset" "$shots" "$cfg" "$seed" "$key" "$value" "$@" ${opts[@]+"${opts[@]}"}
    done
  done
}

curve() { # KEY: the table of all these runs, and the picture of their accuracy over KEY
  [ -z "${ADVPROMPT_DRY_RUN_JOBS:-}" ] || return 0 # a dry run
  conclude "$OUTPUT/$dataset"
  "$PYTHON" -m "$PACKAGE" curves "$OUTPUT/$dataset" --over "$1" --out "$OUTPUT/$dataset/curve.png"
}
