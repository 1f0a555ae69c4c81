#!/bin/bash
# A run on Slurm: one Ray node per host, the driver on the first. docs/cluster.md has more.
#   sbatch deploy/slurm.sh input=/shared/videos output=/shared/dataset
# Submit it again after the time limit: the run resumes.
#SBATCH --job-name=longtake
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
set -euo pipefail

cpus=${SLURM_CPUS_ON_NODE:?run this with sbatch}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
address=$head:$((20000 + SLURM_JOB_ID % 10000))

# One token for all nodes and the driver, because `ray start` asks for one.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token OMP_NUM_THREADS=1

start_node() { # HOST OPTION…
  local host=$1
  shift
  srun --nodes=1 --ntasks=1 --overlap --cpus-per-task="$cpus" --nodelist="$host" \
    ray start --block --disable-usage-stats "$@" &
}

# The driver, on the first host, has one CPU of it.
start_node "$head" --head --port="${address#*:}" --num-cpus=$((cpus > 1 ? cpus - 1 : 1))
for _ in $(seq 60); do
  ray health-check --address="$address" && break
  sleep 2
done
for host in "${hosts[@]:1}"; do
  start_node "$host" --address="$address" --num-cpus="$cpus"
done

# 5 minutes before the time limit Slurm sends SIGTERM: the driver writes its rows and stops.
python -m pipelines.curate "$@" cluster.address="$address" &
driver=$!
trap 'kill -TERM "$driver"' TERM
code=0
wait "$driver" || code=$?
if kill -0 "$driver" 2>/dev/null; then # SIGTERM ended the first `wait`, not the driver
  code=0
  wait "$driver" || code=$?
fi
exit "$code" # Slurm then ends the nodes
