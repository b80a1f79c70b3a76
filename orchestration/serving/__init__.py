"""The best checkpoint behind an endpoint: requests, batches that cannot be seen, the Serve application, its start."""

from orchestration.serving.client import request_image
from orchestration.serving.server import ServerHandle, start_server

__all__ = ["ServerHandle", "request_image", "start_server"]
