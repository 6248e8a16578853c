"""A minute of damaged files and impossible values; ``python -m tests.fuzz`` goes on for longer."""

from tests import fuzz


def test_nothing_is_worse_than_one_sentence():
    counts, faults = fuzz.run(seconds=60)
    assert not faults, "\n\n".join(faults)
    assert counts["file"] > 3 and counts["key"] > 3
