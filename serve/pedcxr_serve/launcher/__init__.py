"""Start a server and run it until it is stopped."""
