#!/usr/bin/env bash
# Every run behind docs/results.md, many hours: DATA=/path/to/data bash scripts/results.sh [--dry-run]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" results "$@"
