"""``python -m maskft`` is the ``maskft`` command."""

import sys

from maskft.cli import main

sys.exit(main())
