#!/bin/sh
# One machine's part of a cluster without Kubernetes, in the foreground, until it is stopped or the
# head is gone. Run it under a supervisor that starts it again (docs/cluster.md has a systemd unit).
#
#   node.sh head                    the driver, the replay service and the dashboard run here
#   node.sh worker <head>           GPU or CPU machine; Ray counts its GPUs
#   node.sh robot <head>            the workstation beside the arm: --resources='{"robot": 1}'
#
# What follows goes to `ray start`, as in `node.sh robot 10.0.0.2 --num-cpus=2`. `ray` must be in PATH,
# and the same token in $RAY_AUTH_TOKEN_PATH on every machine (default: ~/.ray/auth_token).
set -eu

role=${1:?"usage: node.sh head | worker <head> | robot <head>"}
shift
case $role in
head) where="--head --port=6379 --dashboard-host=0.0.0.0 --dashboard-port=8265 --ray-client-server-port=10001" ;;
worker | robot)
  where="--address=${1:?"node.sh $role needs the head's address"}:6379"
  shift
  ;;
*) echo "error: node.sh knows head, worker and robot, not $role" >&2; exit 2 ;;
esac
[ "$role" != robot ] || set -- --resources='{"robot": 1}' "$@"

: "${RAY_AUTH_TOKEN_PATH:=$HOME/.ray/auth_token}"
[ -s "$RAY_AUTH_TOKEN_PATH" ] || {
  echo "error: no token in $RAY_AUTH_TOKEN_PATH; make one with \`ray get-auth-token --generate\` and copy it to every machine" >&2
  exit 2
}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH
# A run that is told to stop puts its processes away; Ray's own 3 s would cut that short.
export RAY_JOB_STOP_WAIT_TIME_S=60
export RAY_worker_niceness=0

# Fixed ports, so that a firewall can name them: docs/cluster.md.
# shellcheck disable=SC2086
exec ray start --block --disable-usage-stats $where \
  --node-manager-port=6380 --object-manager-port=6381 \
  --runtime-env-agent-port=6382 --dashboard-agent-grpc-port=6383 --dashboard-agent-listen-port=6384 \
  --metrics-export-port=8080 --min-worker-port=20000 --max-worker-port=20999 "$@"
