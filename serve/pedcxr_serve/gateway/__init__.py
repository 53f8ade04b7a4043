"""The public face of a server: an ASGI app that forwards reports to the private engine.

``app`` the routes · ``forward`` one request, from its key to its audit line · ``body`` reading it within a cap ·
``frame``, ``policy``, ``fields`` what it may ask for · ``admission``, ``gate`` whose turn it is · ``relay``, ``answer``
to the engine and back · ``job`` all that belongs to one request · ``meter``, ``usage``, ``share`` what it cost ·
``rate`` requests a minute · ``note`` what a client tells for the audit log · ``tls`` the certificate · ``book`` the
tenants in force · ``reply`` answers in OpenAI's shape · ``state`` what the routes and the supervisor share · ``serve``
uvicorn under it all.
"""
