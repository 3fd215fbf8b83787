"""The router: a request's domain, category, tier, base and voice, by name, from configs/."""
