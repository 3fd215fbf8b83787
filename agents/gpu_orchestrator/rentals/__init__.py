"""Rented machines: their life from the order to the proof that they are gone, what they cost, and who pays."""
