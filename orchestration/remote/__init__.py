"""A home on object storage: a working copy on each machine, and what must outlive the machine published to a URL.

store: whole objects, patiently; lease: one machine at a time; copies: what is published and fetched, in which order;
following: published while it trains; places: paths that mean the same on every node.
"""
