"""``python -m pedcxr_serve`` is ``pedcxr-serve``."""

import sys

from .cli import main

sys.exit(main())
