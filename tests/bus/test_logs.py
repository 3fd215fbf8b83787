"""Logs on a full disk."""

from __future__ import annotations

import subprocess
import sys


def test_a_line_that_cannot_be_written_stops_nobody() -> None:
    code = """
import os
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
import structlog
from bus.logs import configure
configure("router-1")
structlog.get_logger().info("online", broker="here")
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n", done
