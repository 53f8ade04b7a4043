"""``python -m pedcxr_client`` is ``pedcxr``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
