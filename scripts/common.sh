# Shared by all run scripts; sourced, never run. The command line of docs/protocols.md:
#   DATASET SHOTS [CFG] [KEY VALUE ...] [--dry-run]
#   environment: DATA, OUTPUT, SEEDS, ATTACK, TESTS, TARGETS, SOURCE_ONLY, PYTHON, PROCESSES
set -euo pipefail
HERE=$PWD
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ "${SCRIPTS##*/}" = advprompt ]; then # in a fork, where dropin has put them
  REPO=$(cd "$SCRIPTS/../.." && pwd) CONFIGS=configs/advprompt PACKAGE=trainers.advprompt
  TRAIN=(-m "$PACKAGE" train) ADVICE="activate the fork's environment"
else
  REPO=$(cd "$SCRIPTS/.." && pwd) CONFIGS=configs PACKAGE=advprompt
  TRAIN=(train.py) ADVICE="run 'bash scripts/setup.sh'"
fi

absolute() { case $1 in /*) echo "$1" ;; "~"*) echo "$HOME${1#\~}" ;; *) echo "$HERE/$1" ;; esac; }
fail() { echo "error: $1" >&2; exit 2; }

DATA=$(absolute "${DATA:-$REPO/data}")
OUTPUT=$(absolute "${OUTPUT:-$REPO/output}")
CACHE=$OUTPUT/cache # few-shot draws, drawings and banks: whatever runs can share
SEEDS=$(echo ${SEEDS:-1 2 3}) # single blanks
if [ -z "${PYTHON:-}" ]; then
  source "$SCRIPTS/active_python.sh"
  PYTHON=${active:-$REPO/.venv/bin/python}
  [ -x "$PYTHON" ] || PYTHON=python3
fi
for number in $SEEDS; do
  [[ $number =~ ^[0-9]+$ ]] || fail "SEEDS has '$number', expected numbers with blanks between them, such as '1 2 3'"
done
[[ ${PROCESSES:-1} =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES is '$PROCESSES', expected a number from 1"
cd "$REPO"
"$PYTHON" -c 'import sys; from importlib.util import find_spec as f; sys.exit(not (f("torch") and f("yacs")))' 2>/dev/null ||
  fail "'$PYTHON' lacks the requirements; $ADVICE or set PYTHON to another interpreter"

# --dry-run, anywhere among the words: the runs are noted in a file instead of being done. Scripts that
# this one calls inherit its name; in the end one table says what they all would do.
words=()
for word in "$@"; do
  if [ "$word" = --dry-run ]; then dry_run=1; else words+=("$word"); fi
done
set -- ${words[@]+"${words[@]}"}
if [ -n "${dry_run:-}" ] && [ -z "${ADVPROMPT_DRY_RUN_JOBS:-}" ]; then
  ADVPROMPT_DRY_RUN_JOBS=$(mktemp)
  export ADVPROMPT_DRY_RUN_JOBS
  planned() {
    local code=$?
    [ $code != 0 ] || "$PYTHON" "${TRAIN[@]}" --dry-run --jobs "$ADVPROMPT_DRY_RUN_JOBS" || code=$?
    rm -f "$ADVPROMPT_DRY_RUN_JOBS"
    exit $code
  }
  trap planned EXIT
fi

run() { # ARGUMENTS of train.py: do one run, or note it
  if [ -n "${ADVPROMPT_DRY_RUN_JOBS:-}" ]; then
    printf '%s\0' "$#" "$@" >>"$ADVPROMPT_DRY_RUN_JOBS"
  else
    local together=()
    [ "${PROCESSES:-1}" = 1 ] || together=(-m torch.distributed.run --standalone --nproc_per_node "$PROCESSES")
    "$PYTHON" ${together[@]+"${together[@]}"} "${TRAIN[@]}" "$@"
  fi
}

report() { # ARGUMENTS of advprompt report: tables of what is there; after a dry run nothing is new
  [ -n "${ADVPROMPT_DRY_RUN_JOBS:-}" ] || "$PYTHON" -m "$PACKAGE" report "$@"
}

attempt() { # WHAT COMMAND ...: go on where it fails, and remember WHAT in $failed
  local what=$1 code=0; shift
  "$@" || code=$?
  case $code in
    0) ;;
    130 | 143) exit $code ;; # Ctrl-C and kill end everything
    *) failed+=" $what" ;;
  esac
}
failed=""

conclude() { # FOLDER ...: the tables of what is there; an error if any attempt failed
  report "$@"
  [ -z "$failed" ] || fail "these did not finish, see above:$failed"
}

full_name() { # short or full data set name -> the name of its config file
  case $1 in
    pets) echo oxford_pets ;;          flowers) echo oxford_flowers ;;
    cars) echo stanford_cars ;;        aircraft) echo fgvc_aircraft ;;
    food) echo food101 ;;              dtd) echo dtd ;;
    sun) echo sun397 ;;                caltech) echo caltech101 ;;
    ucf) echo ucf101 ;;                sketch) echo imagenet_sketch ;;
    *) echo "$1" ;;
  esac
}

dataset_config() { # NAME -> its config file; a fork's own comes first
  if [ -f "configs/datasets/$1.yaml" ]; then echo "configs/datasets/$1.yaml"; else
    echo "$CONFIGS/datasets/$1.yaml"; fi
}

backbone_config() { # default config: ViT-B/16 where its weights are at hand, else the built-in CLIP
  if [ -f "$HOME/.cache/clip/ViT-B-16.pt" ]; then echo vit_b16; else
    echo "note: no ViT-B-16.pt in ~/.cache/clip, so this runs the built-in small CLIP (config 'tiny');" \
      "give the config 'vit_b16' as third argument to insist on ViT-B/16" >&2
    echo tiny
  fi
}

config_for() { # WORD -> WORD where it names a config, the default where it is a key or nothing
  if [[ -n $1 && $1 != *.* && $1 != SEED ]]; then echo "$1"; else backbone_config; fi
}

default_attack() { # TRAINER CFG DATASET -> threat model; AdvPT's paper has one of its own, and the
  # built-in CLIP falls at another level on every data set
  case $1/$2 in
    AdvPT/tiny* | ZeroshotCLIP/tiny*) echo advpt_tiny ;;
    AdvPT/* | ZeroshotCLIP/*) echo advpt16 ;;
    */tiny*) if [ -f "$CONFIGS/attacks/tiny_$3.yaml" ]; then echo "tiny_$3"; else echo linf4_tiny; fi ;;
    *) echo linf1 ;;
  esac
}

flags=() # of train.py, for the next runs
origin="" # of their models: the data set they were trained on, where it is another; in the folder's name
train() { # TRAINER DATASET SHOTS CFG SEED [KEY VALUE ...]: one run, skipped or resumed by itself;
  # leaves its folder in $folder
  local trainer=$1 dataset=$2 shots=$3 cfg=$4 seed=$5; shift 5
  local attack=${ATTACK:-$(default_attack "$trainer" "$cfg" "$dataset")} key=1 word
  local variant=${origin:+_from-$origin}
  for word in "$@"; do  # overrides make another run, so they are part of its folder's name
    [ $key = 1 ] && variant+="_${word##*.}" || variant+="-$word"
    key=$((1 - key))
  done
  variant=$(printf %s "$variant" | tr -c 'A-Za-z0-9._-' '.')
  [ ${#variant} -le 80 ] || variant=_opts-$(printf %s "$variant" | cksum | cut -d' ' -f1)
  folder=$OUTPUT/$dataset/$trainer/${cfg}_${attack}_${shots}shots$variant/seed$seed
  [ -n "${ADVPROMPT_DRY_RUN_JOBS:-}" ] ||
    echo "== $trainer $dataset shots=$shots config=$cfg attack=$attack seed=$seed -> $folder"
  run --root "$DATA" --seed "$seed" --trainer "$trainer" \
    --dataset-config-file "$(dataset_config "$dataset")" \
    --config-file "$CONFIGS/trainers/$trainer/$cfg.yaml" \
    --attack-config-file "$CONFIGS/attacks/$attack.yaml" --output-dir "$folder" \
    ${flags[@]+"${flags[@]}"} DATASET.NUM_SHOTS "$shots" DATASET.CACHE_DIR "$CACHE" \
    DATASET.FEATURE_DIR "$CACHE/banks" "$@" || return
  retest "$@"
}

retest() { # [KEY VALUE ...]: test the run of train again under each of $TESTS, as advprompt robustness does:
  # names of configs/attacks/, settings behind a plus: "linf1_aa advpt16+DEFENCE.NAME=jpeg"
  local test part parts again=() own name
  while [ $# -gt 0 ]; do
    case $1 in ATTACK.TEST.*) ;; *) again+=("$1" "${2:-}") ;; esac
    shift; [ $# = 0 ] || shift
  done
  for test in ${TESTS:-}; do
    IFS=+ read -ra parts <<<"$test"
    name=${parts[0]} own=()
    for part in ${parts[@]+"${parts[@]:1}"}; do
      own+=("${part%%=*}" "${part#*=}")
      name+=_$(printf %s "${part%%=*}-${part#*=}" | tr -c 'A-Za-z0-9._-' '.')
    done
    attempt "$trainer/$dataset/seed$seed/$name" run --root "$DATA" --seed "$seed" --trainer "$trainer" \
      --dataset-config-file "$(dataset_config "$dataset")" \
      --config-file "$CONFIGS/trainers/$trainer/$cfg.yaml" \
      --attack-config-file "$CONFIGS/attacks/$attack.yaml" \
      --test-attack-config-file "$CONFIGS/attacks/${parts[0]}.yaml" \
      --output-dir "$folder/robustness/$name" --eval-only --model-dir "${flags[2]:-$folder}" \
      DATASET.NUM_SHOTS "$shots" DATASET.CACHE_DIR "$CACHE" DATASET.FEATURE_DIR "$CACHE/banks" \
      ${again[@]+"${again[@]}"} ${own[@]+"${own[@]}"}
  done
}

command_line() { # DATASET SHOTS [CFG] [KEY VALUE ...] -> the variables dataset shots cfg opts
  local usage="usage: bash $0 DATASET SHOTS [CFG] [KEY VALUE ...]"
  [ $# -ge 2 ] || fail "$usage"
  dataset=$(full_name "$1") shots=$2; shift 2
  [ "$shots" = all ] && shots=-1
  [[ $shots =~ ^(-1|[1-9][0-9]*)$ || $shots/${zero:-} = 0/1 ]] ||
    fail "SHOTS is '$shots', expected a number such as 16, or all; $usage"
  cfg=$(config_for "${1:-}")
  [ "$cfg" != "${1:-}" ] || shift
  opts=("$@")
  local test
  for test in ${TESTS:-}; do # a mistake is said before any work
    [ -f "$CONFIGS/attacks/${test%%+*}.yaml" ] ||
      fail "there is no test '${test%%+*}' ($CONFIGS/attacks/${test%%+*}.yaml); check TESTS"
  done
}

known_words() { # DATASET CFG METHOD ...: each must be there, with scripts for $PROTOCOL
  local dataset=$1 cfg=$2 method; shift 2
  [ -f "$(dataset_config "$dataset")" ] ||
    fail "there is no data set '$dataset' ($(dataset_config "$dataset")); check DATASET"
  [ -f "$CONFIGS/trainers/ZeroshotCLIP/$cfg.yaml" ] ||
    fail "there is no config '$cfg' ($CONFIGS/trainers/ZeroshotCLIP/$cfg.yaml); choose one such as vit_b16 or tiny"
  for method in "$@"; do
    [ -f "$SCRIPTS/${method%_finetune}/main.sh" ] ||
      fail "there is no method '$method' ($SCRIPTS/${method%_finetune}/main.sh); check METHODS"
    [ -f "$SCRIPTS/${method%_finetune}/$PROTOCOL.sh" ] ||
      fail "there is no protocol '$PROTOCOL' ($SCRIPTS/${method%_finetune}/$PROTOCOL.sh); PROTOCOL is main, base2new, xd or dg"
  done
}

few_shot() { # TRAINER DATASET SHOTS [CFG] [KEY VALUE ...]: all seeds, then the table
  local trainer=$1 dataset shots cfg opts seed; shift
  command_line "$@"
  for seed in $SEEDS; do
    train "$trainer" "$dataset" "$shots" "$cfg" "$seed" ${opts[@]+"${opts[@]}"}
  done
  conclude "$OUTPUT/$dataset"
}

zero_shot() { # PROTOCOL DATASET [SHOTS] [CFG] [KEY VALUE ...]: nothing is drawn or trained, so that one
  # seed says all and shots mean nothing
  local protocol=$1 dataset; shift
  [ $# -ge 1 ] || fail "usage: bash $0 DATASET [CFG] [KEY VALUE ...]"
  SEEDS=${SEEDS%% *} dataset=$1; shift
  if [[ ${1:-} =~ ^(-1|[0-9]+|all)$ ]]; then shift; fi
  local zero=1
  "$protocol" ZeroshotCLIP "$dataset" 0 "$@"
}

base_to_new() { # TRAINER DATASET SHOTS [CFG] [KEY VALUE ...]: train on the first half of the
  # classes, test on it and, with the same prompts, on the other half
  local trainer=$1 dataset shots cfg opts seed; shift
  command_line "$@"
  for seed in $SEEDS; do
    flags=()
    train "$trainer" "$dataset" "$shots" "$cfg" "$seed" DATASET.SUBSAMPLE_CLASSES base ${opts[@]+"${opts[@]}"}
    [ "$trainer" = ZeroshotCLIP ] || flags=(--eval-only --model-dir "$folder")
    train "$trainer" "$dataset" "$shots" "$cfg" "$seed" DATASET.SUBSAMPLE_CLASSES new ${opts[@]+"${opts[@]}"}
  done
  conclude "$OUTPUT/$dataset"
}

targets_of() { # PROTOCOL SOURCE -> the data sets that prompts from SOURCE are tested on
  if [ -n "${TARGETS:-}" ]; then echo "$TARGETS"; return; fi
  case $1/$2 in
    xd/imagenet) echo caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft \
      sun397 dtd eurosat ucf101 ;;
    xd/shapes) echo shapes_novel shapes_patterns ;;
    dg/imagenet) echo imagenetv2 imagenet_sketch imagenet_a imagenet_r ;;
    dg/shapes) echo shapes_sketch shapes_noise shapes_blur shapes_background ;;
    *) fail "no data sets to test on are known for source '$2'; name some, such as TARGETS='pets dtd'" ;;
  esac
}

beyond_source() { # PROTOCOL TRAINER SOURCE SHOTS [CFG] [KEY VALUE ...]: train on the source as main.sh
  # does, then test the same prompts on it and on every target, under one threat model. Targets go
  # without the keys of $SOURCE_ONLY, and without TEST.FIRST: file names of few sets are in random order
  local protocol=$1 trainer=$2 dataset shots cfg opts seed targets target trained places shared=() i
  shift 2
  command_line "$@"
  for ((i = 0; i < ${#opts[@]}; i += 2)); do
    case " TEST.FIRST ${SOURCE_ONLY:-} " in
      *" ${opts[i]} "*) ;;
      *) shared+=("${opts[@]:i:2}") ;;
    esac
  done
  targets=$(targets_of "$protocol" "$dataset") places=("$OUTPUT/$dataset")
  ATTACK=${ATTACK:-$(default_attack "$trainer" "$cfg" "$dataset")}
  for target in $targets; do # all of them first: a mistake in the last must not cost hours
    target=$(full_name "$target")
    [ -f "$(dataset_config "$target")" ] ||
      fail "target '$target' has no $(dataset_config "$target"); check TARGETS"
    places+=("$OUTPUT/$target")
  done
  for seed in $SEEDS; do
    flags=() origin=""
    train "$trainer" "$dataset" "$shots" "$cfg" "$seed" ${opts[@]+"${opts[@]}"}
    trained=()
    if [ "$trainer" != ZeroshotCLIP ]; then # whose test on the source is done, and as good for targets
      flags=(--eval-only --model-dir "$folder") origin=$dataset trained=(TEST.PROTOCOL "$protocol")
      train "$trainer" "$dataset" "$shots" "$cfg" "$seed" "${trained[@]}" ${opts[@]+"${opts[@]}"}
    fi
    for target in $targets; do
      target=$(full_name "$target")
      attempt "$trainer/$target/seed$seed" train "$trainer" "$target" "$shots" "$cfg" "$seed" \
        ${trained[@]+"${trained[@]}"} ${shared[@]+"${shared[@]}"}
    done
  done
  conclude "${places[@]}"
}

cross_dataset() { beyond_source xd "$@"; } # TRAINER SOURCE SHOTS [CFG] [KEY VALUE ...]
domain_shift() { beyond_source dg "$@"; }  # the same
