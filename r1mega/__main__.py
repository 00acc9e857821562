"""`python -m r1mega`: the same as the `r1mega` command."""

import sys

from r1mega.cli import main

if __name__ == "__main__":
    sys.exit(main())
