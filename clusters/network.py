"""What nodes of one training tell their libraries about the network between them, each with its reason, in one place.

A site's `environment` overrides any of these; a job's overrides both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from clusters.job import Job, Site

HEALTH = {  # of every Ray cluster of several nodes that we start
    "RAY_health_check_period_ms": ("2000", "a node that is gone is known to be after 5 x 2 s, not after a minute"),
    "RAY_health_check_failure_threshold": ("5", "and one that is only busy for some seconds is not given up"),
    "RAY_gcs_rpc_server_reconnect_timeout_s": ("20", "nodes whose head is gone are given back after 20 s, not 60"),
    "RAY_USAGE_STATS_ENABLED": ("0", "nothing is told to anybody"),
}
GANG = {  # where GPUs of several nodes train together
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": ("1", "a rank whose peer is gone raises, instead of waiting on its GPU"),
    "TORCH_FR_BUFFER_SIZE": ("2000", "the last collectives of each rank are kept for who looks at a hang"),
    "NCCL_SOCKET_IFNAME": ("^lo,docker,veth,cni", "ranks meet on a network that other nodes see"),
    "NCCL_IB_TIMEOUT": ("22", "a link that flaps for 20 s does not end the run (4.096 us x 2^22 per try)"),
    "NCCL_DEBUG": ("WARN", "what NCCL cannot do is said once"),
}


def environment(job: Job, site: Site) -> Mapping[str, str]:
    """The variables of a job at a site, sorted by name. ValueError: one that `Job.checked` refuses."""
    ours = {**(HEALTH if job.nodes > 1 else {}), **(GANG if job.nodes > 1 and job.gpus else {})}
    told = {name: value for name, (value, _) in ours.items()}
    merged = dict(sorted({**told, **site.environment, **job.environment}.items()))
    return replace(job, environment=merged).checked().environment
