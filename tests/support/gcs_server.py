"""A Google Cloud Storage server in its own process: it prints its port and serves until killed.

In a thread of the tests it would deadlock: pyarrow's client may hold the GIL while it waits.
"""

import logging
from functools import partial
from http.server import ThreadingHTTPServer

from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

if __name__ == "__main__":
    logging.disable()
    handler = partial(RequestHandler, Storage(use_memory_fs=True))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
