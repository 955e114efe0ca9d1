"""Every metric of the server, declared once; labels come from closed sets."""

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

Outcome = Literal["completed", "refused", "unauthorized", "busy", "disconnected", "deadline", "interrupted", "failed"]
State = Literal["loading", "ready", "draining", "failed"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ServingMetrics:
    """What the server measures, as attributes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "pretrain_serve_requests_total",
            "Requests for completions by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self.tokens = Counter(
            "pretrain_serve_tokens_total", "Tokens of prompts and of continuations.", ["kind"], registry=registry
        )
        self.continuations = Gauge(
            "pretrain_serve_continuations", "Continuations under way, by phase.", ["phase"], registry=registry
        )
        self.slots = Gauge("pretrain_serve_slots", "Continuations that there is room for at a time.", registry=registry)
        self.state = Gauge("pretrain_serve_state", "1 for what the server is doing.", ["state"], registry=registry)
        self.first_token_seconds = Histogram(
            "pretrain_serve_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "pretrain_serve_request_duration_seconds",
            "From a request's arrival to the end of its answer, completed ones alone.",
            buckets=SECONDS,
            registry=registry,
        )
        self.step_seconds = Histogram(
            "pretrain_serve_step_duration_seconds",
            "Time of one step of the batch, pieces of prompts included.",
            buckets=SECONDS,
            registry=registry,
        )
        for outcome in get_args(Outcome):
            self.requests.labels(outcome)  # from 0, so that the first increase is seen
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)
        self.under_way(0, 0, 0)
        self.now("loading")

    def now(self, state: State) -> None:
        """Say what the server is doing: one state is 1, the others are 0."""
        for name in get_args(State):
            self.state.labels(name).set(name == state)

    def under_way(self, waiting: int, reading: int, decoding: int) -> None:
        """Set how many continuations wait for a slot, read their prompt, and get tokens."""
        self.continuations.labels("waiting").set(waiting)
        self.continuations.labels("reading").set(reading)
        self.continuations.labels("decoding").set(decoding)

    def ended(self, outcome: Outcome) -> None:
        """Count a request."""
        self.requests.labels(outcome).inc()

    def count(self, outcome: Outcome) -> int:
        """How many requests have ended so."""
        return int(self.registry.get_sample_value("pretrain_serve_requests_total", {"outcome": outcome}) or 0)
