"""The market: what machines are for sale, whether a price can be right, what a job would take there, and which one to take."""
