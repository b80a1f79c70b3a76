"""The best checkpoint behind an endpoint: requests, batches that cannot be seen, the Serve application, its client."""

from orchestration.serving.client import Picture, T2IClient, request_image

__all__ = ["Picture", "T2IClient", "request_image"]
