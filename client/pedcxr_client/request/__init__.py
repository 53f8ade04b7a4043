"""One request: the prompt, the body, the connection, retries, and the parsing of the response."""
