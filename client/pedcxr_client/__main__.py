"""Run ``pedcxr`` as ``python -m pedcxr_client``."""

from pedcxr_client.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
