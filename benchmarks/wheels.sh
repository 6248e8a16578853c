#!/usr/bin/env bash
# Put what benchmarks/gpu.sh needs besides PyTorch, torchvision and timm into wheels/, on a machine
# with a package index: bash benchmarks/wheels.sh [3.12]    (the Python of the GPU's machine)
set -euo pipefail; cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
platforms=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64)
mkdir -p wheels && rm -f wheels/*.whl
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
  "${platforms[@]/#/--platform=}" -d wheels open_clip_torch yacs ftfy wcwidth submitit cloudpickle \
  filelock jinja2 MarkupSafe tabulate tqdm regex safetensors scipy
du -sh wheels
