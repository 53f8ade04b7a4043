"""The commands of ``pedcxr``, one module each: ``add`` defines the command's arguments, ``run`` executes it."""
