"""``python -m pedcxr_client`` is ``pedcxr``."""

from pedcxr_client.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
