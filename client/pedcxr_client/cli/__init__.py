"""The commands of ``pedcxr``, one module each: ``add`` describes it to the parser, ``run`` does it."""
