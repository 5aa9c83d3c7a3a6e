"""`python -m gradlint`."""

import os
import sys

# Python puts the working directory first, where a file named like a library would be imported.
if sys.path and not sys.flags.safe_path and os.path.realpath(sys.path[0]) != os.path.dirname(os.path.dirname(__file__)):  # noqa: PTH120
    del sys.path[0]

from gradlint.cli import main

main()
