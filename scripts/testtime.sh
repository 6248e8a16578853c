#!/usr/bin/env bash
# Zero-shot CLIP under a test-time defence: bash scripts/testtime.sh METHOD DATASET [CFG] [KEY VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" testtime "$@"
