"""Thousands of films into one file: what ``pedcxr batch`` does.

manifest, folder   which films there are, one by one
journal            the file: locked, repaired, appended to and synced; what it holds is not done again
outage             waiting for a server that went away, once for all films
run                a film at a time, many at once, from an entry to a line
"""
