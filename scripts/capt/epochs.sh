# CAPT's epochs by shots; sourced, never run. Few shots need fewer than the configs' 100; tiny
# configs have their own number.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
epochs=()
if [[ " $* " != *" OPTIM.MAX_EPOCH "* ]]; then
  case $(config_for "${3:-}" 2>/dev/null)/${2:-} in
    tiny*) ;;
    */1) epochs=(OPTIM.MAX_EPOCH 20) ;;
    */2 | */4) epochs=(OPTIM.MAX_EPOCH 50) ;;
  esac
fi
