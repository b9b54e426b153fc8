#!/usr/bin/env bash
# One rank of a Slurm job step: what DeepSpeed's launcher would put into its environment, from what srun does.
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID

# "8(x3),4": eight tasks on each of three nodes, four on the next.
sizes=()
for part in ${SLURM_STEP_TASKS_PER_NODE//,/ }; do
    times=1
    [[ $part == *"(x"* ]] && times=${part#*x} && times=${times%)}
    for ((i = 0; i < times; i++)); do sizes+=("${part%%(*}"); done
done
export LOCAL_SIZE=${sizes[$SLURM_NODEID]}

trap '' USR1 # until training can heed it, it would end the process
exec "${PYTHON:-python}" launch/train.py "$@"
