"""Run the command line: ``python -m ganfast``."""

import sys

from ganfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
