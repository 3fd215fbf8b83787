"""The providers: one thin adapter each to what sells machines, all with one protocol and one closed set of errors."""
