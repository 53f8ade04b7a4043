"""``pedcxr bench``: load tests with the client's own requests, raw timestamps and rules that make a figure count."""
