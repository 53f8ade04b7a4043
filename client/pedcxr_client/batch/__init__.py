"""Reports of many films in one output file, as ``pedcxr batch`` writes them.

manifest, folder   list the films, one at a time
study_selection    chooses one film of each study by the headers
lock               keeps other runs from writing the output file
output_file        the JSONL output: locked, repaired, appended to and synced; films reported there are skipped
outage             one wait for an unavailable server, shared by all films
runner             process films concurrently, from an entry to a line
"""
