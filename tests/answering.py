"""Becomes a process that answers beside others, without the imports of a fresh one.

The fork server runs this instead of a command. The file that FROM_FIRST names holds what the
service's first process sends; that process has ended when it holds nothing.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from autopack.cli.answering import _main

if __name__ == "__main__":
    first, link = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    sent = Path(os.environ["FROM_FIRST"]).read_bytes()
    first.sendall(sent)
    if not sent:
        first.close()
    sys.exit(_main(listener.detach(), link.detach()))
