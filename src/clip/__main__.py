"""``python -m clip`` is the ``clip`` command."""

from clip.cli.main import main

if __name__ == "__main__":
    main()
