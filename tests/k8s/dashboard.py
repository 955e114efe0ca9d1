"""What the Grafana dashboard asks Prometheus for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[2] / "k8s/components/monitoring/dashboard.json"


def panels() -> Iterator[dict[str, Any]]:
    """Every panel, those of rows included."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield panel
        yield from panel.get("panels", ())


def expressions() -> list[str]:
    """Every expression, those of annotations included."""
    annotations = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    return [part["expr"] for part in (*(t for panel in panels() for t in panel.get("targets", ())), *annotations)]
