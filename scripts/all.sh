#!/usr/bin/env bash
# Every trainer (or METHODS) under one threat model: bash scripts/all.sh DATASET SHOTS [CFG] [KEY VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" all "$@"
