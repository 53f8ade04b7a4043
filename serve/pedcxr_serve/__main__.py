"""Run ``pedcxr-serve`` as ``python -m pedcxr_serve``."""

import sys

from pedcxr_serve.cli import main

sys.exit(main())
