"""The public face of a server: an ASGI app that forwards reports to the private engine.

``app`` the routes · ``forward`` one request to the engine and back · ``body`` reading it within a cap ·
``reply`` answers in OpenAI's shape · ``state`` what the routes and the supervisor share · ``serve`` uvicorn
under it all.
"""
