"""``python -m pedcxr_serve`` is ``pedcxr-serve``."""

import sys

from pedcxr_serve.cli import main

sys.exit(main())
