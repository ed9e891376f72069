"""Enters the network namespace whose file NETWORK_NAMESPACE names.

The fork server runs this before the service's command, and `killing.py` after it.
"""

from __future__ import annotations

import ctypes
import os
import runpy
from pathlib import Path

CLONE_NEWNET = 0x40000000

with open(os.environ["NETWORK_NAMESPACE"]) as namespace:
    # `os.setns` is there from Python 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
runpy.run_path(str(Path(__file__).with_name("killing.py")), run_name="__main__")
