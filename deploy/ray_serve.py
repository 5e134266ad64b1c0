"""The server on several machines: `SIDESTEP_MODELS=RUN serve run ray_serve:server` (docs/serving.md)."""

import os

from fastapi import FastAPI
from ray import serve

from sidestep.serve.app import create_app
from sidestep.serve.served_model import open_models
from sidestep.serve.settings import ServeSettings


def app() -> FastAPI:
    """Return the application of one replica, which opens its models where it runs."""
    settings = ServeSettings(deadline_ms=float(os.environ.get("SIDESTEP_DEADLINE_MS", "200")))
    return create_app(open_models(os.environ["SIDESTEP_MODELS"].split(","), settings), settings)


@serve.deployment(
    # The budget answers to a queue within milliseconds; replicas follow what lasts.
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 64},
    max_ongoing_requests=1024,
)
@serve.ingress(app)
class Server:
    """A replica."""


server = Server.bind()
