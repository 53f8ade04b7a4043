"""Settings of the whole test run."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# Tests use no network: they need only what is in the repository or what they make.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Hypothesis would count it against an example if the machine pauses: its usual limits are 0.2 s for each example, and
# some seconds to make the first ones. Loops without end still meet the time limit of pytest.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

# A background job of a shell (`nohup make test &`) ignores SIGINT, and its children inherit that. A handler that does
# nothing still ignores SIGINT in this process, but exec resets it to the default, so that children react to SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: None)
