"""Two hundred requests at once: `python -m tests.load`."""
