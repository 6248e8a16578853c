# Sourced: sets $active to the interpreter of the active environment, or to nothing.
# Conda's "base" does not count: set-up keeps out of it, and so do the runs.
active=""
if [ -n "${VIRTUAL_ENV:-}" ]; then
  active=$VIRTUAL_ENV/bin/python
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
  active=$CONDA_PREFIX/bin/python
fi
