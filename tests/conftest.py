"""What all tests share."""

from __future__ import annotations

import os

# Nothing here may reach for a network: what is needed is in the repository or made on the spot.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
