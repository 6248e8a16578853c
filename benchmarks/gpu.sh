#!/usr/bin/env bash
# Prove and measure everything on a GPU, in 8 minutes: bash benchmarks/gpu.sh [--device cpu --quick]
# Needs PyTorch, torchvision and timm, no network; what else is missing comes from wheels/, which
# benchmarks/wheels.sh makes. What the machine has already is left as it is.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
site=$(mktemp -d) && mkdir "$site/advprompt" || exit 2
ln -s "$PWD"/trainers/* "$PWD"/{datasets,configs,scripts} "$site/advprompt/" || exit 2 # as it is installed
export PYTHONPATH="$PWD:$site:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
for wheel in wheels/*.whl; do
  name=${wheel#wheels/}
  [ ! -e "$wheel" ] || python3 -c "from importlib.metadata import version; version('${name%%-*}')" 2>/dev/null ||
    python3 -m pip install -q --no-index --no-deps --target "$site" "$wheel" || exit 2
done
exec python3 -m benchmarks.gpu all "$@"
