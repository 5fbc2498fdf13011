"""``python -m normalcy`` is the command ``normalcy``."""

from normalcy.cli.app import main

main()
