"""The conductor: coordinates each job from request to result. `decide` is pure, `agent` talks to the bus."""
