#!/bin/bash
# training-1: 4 nodes, all of them this machine
set -eu
export PYTHONUNBUFFERED=1
export NCCL_DEBUG=WARN
export NCCL_IB_TIMEOUT=22
export NCCL_SOCKET_IFNAME='^lo,docker,veth,cni'
export OMP_NUM_THREADS=1
export RAY_USAGE_STATS_ENABLED=0
export RAY_gcs_rpc_server_reconnect_timeout_s=20
export RAY_health_check_failure_threshold=5
export RAY_health_check_period_ms=2000
export TORCH_FR_BUFFER_SIZE=2000
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export WANDB_MODE=offline
export INTERLACE_ATTEMPT="${INTERLACE_ATTEMPT:-by-hand-$$-$RANDOM}"
export INTERLACE_NODES_HERE=4
export PYTHONPATH=/shared/runs/jobs/training-1/code${PYTHONPATH:+:$PYTHONPATH}
/house/.venv/bin/python -P -m clusters.node /shared/runs/jobs/training-1 --rank 1 &
/house/.venv/bin/python -P -m clusters.node /shared/runs/jobs/training-1 --rank 2 &
/house/.venv/bin/python -P -m clusters.node /shared/runs/jobs/training-1 --rank 3 &
exec /house/.venv/bin/python -P -m clusters.node /shared/runs/jobs/training-1 --rank 0
