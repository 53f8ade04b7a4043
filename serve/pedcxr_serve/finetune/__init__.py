"""Fine-tune a model on films and reports, and merge an adapter into its base. Needs the extra ``pedcxr[train]``.

No other part of pedcxr imports this package, except for the command line, which imports `command` alone.
"""
