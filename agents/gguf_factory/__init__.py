"""The factory: one leased job becomes a validated GGUF, stage by stage."""
