#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advivlp xd "$@" # AdvIVLP, cross-dataset: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
