"""Part 7: the same, ready to be run by systemd, Docker or Kubernetes."""

import os

from cluster import hub

from wsc_fast import HubConfig, Request

hub.set_config(HubConfig.from_env())  # WSC_DRAIN_PERIOD=10, WSC_ALLOWED_ORIGINS=https://..., ...
hub.enable_metrics(host="127.0.0.1", port=int(os.environ.get("METRICS_PORT", "9100")))


@hub.route("/health")
def health(request: Request) -> dict[str, object]:
    return {"status": "healthy", "clients": hub.get_connected_clients()}


if __name__ == "__main__":
    hub.run(os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8080")))
