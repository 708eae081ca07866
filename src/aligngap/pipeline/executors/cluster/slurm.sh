#!/bin/bash
#SBATCH --job-name=aligngap
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@CPUS@
#SBATCH --gpus-per-node=@GPUS@
#SBATCH --time=@TIME@
#SBATCH --output=aligngap-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:USR1@120

# Submit it where `aligngap run` would be given, in a folder that all nodes see. One job after the other goes on with
# the run: two minutes before its time is over a job puts itself into the queue again; one that is pre-empted, or whose
# first node fails, is put there by Slurm; the loss of another node it survives (--no-kill). The first node is Ray's
# head, and runs aligngap.

set -euo pipefail

export PATH=@BIN@:"$PATH"
# Whoever reaches a Ray cluster without a token can run anything in it.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# Ports of this job's own, outside the range that the system gives to others: a node may serve several jobs.
HEAD=$(hostname --ip-address | cut -d' ' -f1)
PORT=$((20000 + SLURM_JOB_ID % 6000 * 2))
export HEAD PORT

node() {
  common=(--block --num-cpus=@CPUS@ --num-gpus=@GPUS@ --min-worker-port=0 --max-worker-port=0
    --dashboard-agent-listen-port=0)
  if [ "$SLURM_NODEID" = 0 ]; then
    exec ray start --head --port="$PORT" --ray-client-server-port=$((PORT + 1)) --include-dashboard=false \
      --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${common[@]}"
  fi
  until_answered
  exec ray start --address="$HEAD:$PORT" "${common[@]}"
}

until_answered() {
  for _ in $(seq 300); do
    (exec 3<>"/dev/tcp/$HEAD/$PORT") 2>/dev/null && return
    sleep 1
  done
  echo "Ray's head does not answer at $HEAD:$PORT" >&2
  exit 1
}

export -f node until_answered
srun --nodes=@NODES@ --ntasks=@NODES@ --ntasks-per-node=1 --no-kill --overlap bash -c node &
cluster=$!
until_answered

again=
aligngap run @WORDS@ --executor ray --address "$HEAD:$PORT" &
run=$!
trap 'again=yes; kill -TERM "$run"' USR1
trap 'kill -TERM "$run"' TERM

# A trapped signal ends `wait` before the run has ended.
while kill -0 "$run" 2>/dev/null; do
  wait "$run" || true
done
code=0
wait "$run" || code=$?

kill -TERM "$cluster" 2>/dev/null || true
wait "$cluster" || true
if [ -n "$again" ] && [ "$code" = 130 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
