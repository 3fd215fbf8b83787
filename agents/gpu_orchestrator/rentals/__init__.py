"""Rented machines: their life from the order to the proof that they are gone, what they cost, and who pays.

- pure: rental (what is remembered), life (what is due, what an answer makes of it), meter, placement (who shares), breaker,
  owner (whose machines a key shows)
- within a transaction of the agent: store (all SQL), office (rents and ends), purse (more money for a job, or its end),
  till (tells the cost monitor)
- over the network, and nowhere else: keeper (the providers), admission (the broker's logins)
"""
