#!/usr/bin/env bash
# Zero-shot CLIP, base-to-novel: bash scripts/zsclip/base2new.sh DATASET [CFG] [KEY VALUE ...] [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run zsclip base2new "$@"
