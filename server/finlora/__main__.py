"""`python -m finlora`."""

import sys

from finlora.cli import main

if __name__ == "__main__":
    sys.exit(main())
