"""Settings of the whole test run."""

from __future__ import annotations

import os
import signal

# Tests use no network: they need only what is in the repository or what they make.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A background job of a shell (`nohup make test &`) ignores SIGINT, and its children inherit that. A handler that does
# nothing still ignores SIGINT in this process, but exec resets it to the default, so that children react to SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: None)
