"""The public side of a server: an ASGI app that forwards requests to the private engine.

A request passes through these modules in order:

- ``http``: connections, TLS, access log
- ``app``: routes
- ``chat``: one request to ``/v1/chat/completions`` from start to end
- ``auth``: tenants and their keys
- ``rate_limit``: requests per minute
- ``request``: body, validation, the image within the body
- ``scheduler``: which request the engine gets next
- ``upstream``: to the engine and back
- ``error_responses``: errors in OpenAI's format
- ``accounting``: metrics, usage, audit log

``request_context`` belongs to one request. ``state`` is shared by all requests and the supervisor.
"""
