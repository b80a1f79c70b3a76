"""Is this machine, or this cluster, fit for t2i: probes run on nodes, facts come back, checks make findings of them."""
