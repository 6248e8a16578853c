#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run zsclip xd "$@" # Zero-shot CLIP, cross-dataset: SOURCE [CFG] [KEY VALUE ...] [--dry-run]
