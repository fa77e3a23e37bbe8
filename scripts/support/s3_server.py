"""moto as an S3 server on a free loopback port; prints its URL and ends with its standard input.

Promises: requests take effect one at a time. moto itself looks whether an object exists and makes it in
two steps, between which another thread can come; S3 does it in one.
"""

import io
import logging
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class KeepAlive(WSGIRequestHandler):
    """Connections that carry many requests, as those of S3 do."""

    protocol_version = "HTTP/1.1"


class OneAtATime:
    """An application whose requests exclude each other."""

    def __init__(self, inner):
        self.inner = inner
        self.alone = threading.Lock()

    def __call__(self, environ, start_response):
        # The body first: a slow client must not hold up the others.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with self.alone:
            return [b"".join(self.inner(environ, start_response))]


def main():
    """Serves until nobody holds the other end of standard input."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = OneAtATime(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=KeepAlive)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.buffer.read()


main()
