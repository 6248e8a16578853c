"""The ``advprompt`` command; one module per sub-command."""
