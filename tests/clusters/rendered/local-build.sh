#!/bin/bash
# build-1: 2 nodes, all of them this machine
set -eu
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1
export RAY_USAGE_STATS_ENABLED=0
export RAY_gcs_rpc_server_reconnect_timeout_s=20
export RAY_health_check_failure_threshold=5
export RAY_health_check_period_ms=2000
export INTERLACE_ATTEMPT="${INTERLACE_ATTEMPT:-by-hand-$$-$RANDOM}"
export INTERLACE_NODES_HERE=2
export PYTHONPATH=/shared/runs/jobs/build-1/code${PYTHONPATH:+:$PYTHONPATH}
/house/.venv/bin/python -P -m clusters.node /shared/runs/jobs/build-1 --rank 1 &
exec /house/.venv/bin/python -P -m clusters.node /shared/runs/jobs/build-1 --rank 0
