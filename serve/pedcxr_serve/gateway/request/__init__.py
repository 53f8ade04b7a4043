"""The request body: reading, validation, and the splice that leaves the image undecoded."""
