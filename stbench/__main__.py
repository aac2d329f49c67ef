"""``python -m stbench``: the program, where its script is not on PATH."""

import sys

from stbench.cli import main

sys.exit(main())
