"""The best checkpoint behind an endpoint: requests, batches that cannot be seen, the Serve application, its start."""
