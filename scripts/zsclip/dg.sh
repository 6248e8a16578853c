#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run zsclip dg "$@" # Zero-shot CLIP, domain shift: SOURCE [CFG] [KEY VALUE ...] [--dry-run]
