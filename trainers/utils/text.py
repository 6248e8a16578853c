"""Text from files and records, made harmless for terminals and spreadsheets."""

import re

# characters that control a terminal or reverse its text, and bytes of file names that are not
# UTF-8; a line feed and a tab are kept
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""Return ``text`` with its control characters written out, such as ``\x1b``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Visible:
    """Wraps an output stream, so that names from files cannot control the terminal.

    A carriage return at the start of a write is kept: progress bars begin with one. ``raw`` is the
    stream itself, for code that does control the terminal.
    """

    def __init__(self, stream):
        self.raw = stream

    def write(self, text: str) -> int:
        start = text[:1] if text[:1] == "\r" else ""
        self.raw.write(start + visible(text[len(start) :]))
        return len(text)

    def __getattr__(self, name: str):  # isatty, encoding, fileno, ...
        return getattr(self.raw, name)
