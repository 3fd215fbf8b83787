"""The agents: one process each, a pure core and a thin shell that talks to the bus."""
