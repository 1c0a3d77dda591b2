"""`python -m tfsd` is the command `tfsd`."""

import sys

from tfsd.cli import main

if __name__ == "__main__":
    sys.exit(main())
