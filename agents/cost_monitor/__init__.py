"""The cost monitor: the ledger of all money, reservations before anything starts, alerts when it runs out."""
