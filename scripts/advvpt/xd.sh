#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" run advvpt xd "$@" # AdvVPT, cross-dataset: SOURCE SHOTS [CFG] [KEY VALUE ...] [--dry-run]
