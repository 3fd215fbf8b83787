"""The emotion agent: what feeling a text carries, how strong it is, and what its context makes of it."""
