"""``python -m lorasmith`` is the ``lorasmith`` command."""

from lorasmith.cli import main

if __name__ == "__main__":
    main()
