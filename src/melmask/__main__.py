"""`python -m melmask` is the command `melmask`."""

import sys

from melmask.cli import main

sys.exit(main())
