"""Objects by URL: in parallel ranges, with retries; a cache of them on a local disk."""
