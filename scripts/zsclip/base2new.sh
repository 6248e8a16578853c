#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run zsclip base2new "$@" # Zero-shot CLIP, base-to-novel: DATASET [CFG] [KEY VALUE ...] [--dry-run]
