"""``python -m puna``."""

from puna.cli.main import main

main()
