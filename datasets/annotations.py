"""The publishers' annotation files, text and MATLAB; an error names file and line."""

from collections.abc import Callable
from pathlib import Path

from ..utils.errors import UserError


def find(data, name: str) -> Path:
    """Return the path of a data set's file; UserError if it does not exist."""
    path = data.dataset_dir / name
    if not path.is_file():
        absent = f"'{name}' is not"
        if data.split_file:
            absent = f"neither '{data.split_file}' nor '{name}' is"
        raise UserError(
            f"data set {data.name} is incomplete: {absent} in '{data.dataset_dir}'; {data.advice()}"
        )
    return path


def read_rows(data, name: str, parse: Callable, expected: str) -> list:
    """Return ``parse(line)`` of every line of a text file that is not blank.

    ``parse`` raises ValueError or KeyError for a line that is not as ``expected`` describes.
    """
    path, rows = find(data, name), []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            rows.append(parse(line.strip()))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"'{path}' has the line '{line.strip()}', expected {expected}; {data.advice()}"
            ) from error
    if not rows:
        raise UserError(f"'{path}' is empty, expected lines of {expected}; {data.advice()}")
    return rows


def read_mat(data, name: str, parse: Callable):
    """Return ``parse(variables)`` of a MATLAB file; UserError if it or SciPy is missing."""
    path = find(data, name)
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(
            f"'{path}' is a MATLAB file, and SciPy, which reads it, is not installed; run 'pip "
            f"install scipy', or put CoOp's '{data.split_file}' into '{data.dataset_dir}'"
        ) from error
    try:
        return parse(loadmat(str(path)))
    except Exception as error:  # a damaged file makes SciPy raise nearly anything
        raise UserError(
            f"'{path}' is damaged or not the file expected ({type(error).__name__}: {error}); "
            f"{data.advice()}"
        ) from error
