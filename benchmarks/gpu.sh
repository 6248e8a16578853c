#!/usr/bin/env bash
# Prove and measure everything on a GPU, in 8 minutes: bash benchmarks/gpu.sh [--device cpu --quick]
# Needs PyTorch, torchvision and timm, no network; wheels of what else is missing lie in wheels/,
#   pip download --no-deps -d wheels open_clip_torch yacs safetensors ftfy regex filelock ... (docs/performance.md)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
site=$(mktemp -d) && ln -s "$PWD/trainers" "$site/advprompt" && ln -s "$PWD/datasets" "$PWD/configs" "$site/" || exit 2
export PYTHONPATH="$PWD:$site:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
[ ! -d wheels ] || python3 -m pip install -q --no-index --no-deps --target "$site" wheels/*.whl || exit 2
exec python3 -m benchmarks.gpu all "$@"
