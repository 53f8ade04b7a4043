"""One request: the prompt, the body, retries, and the parsing of the response."""
