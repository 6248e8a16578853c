"""``python -m advprompt`` is the console command."""

from .cli.main import main

main()
