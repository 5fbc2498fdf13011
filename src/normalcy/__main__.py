"""``python -m normalcy`` is the command ``normalcy``."""

from normalcy.cli import main

main()
