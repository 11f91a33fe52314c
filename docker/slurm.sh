#!/usr/bin/env bash
#SBATCH --job-name=horovod_dgc
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
# One worker a node, in the image, under Slurm:
#   sbatch docker/slurm.sh python /opt/examples/pytorch_images.py --data-dir /data
# Apptainer reads the image from a file: apptainer build horovod_dgc.sif docker-archive:horovod_dgc.tar, after
# docker save horovod_dgc -o horovod_dgc.tar. Set IMAGE to that file and DATA to the folder of the training data.
set -euo pipefail
image=${IMAGE:-horovod_dgc.sif}
data=${DATA:?folder with the training data}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# Slurm starts the workers itself, so that neither ssh nor keys are needed. Its PMIx must be of a version that Open MPI
# 4.1 knows: `srun --mpi=list` shows what there is.
srun --mpi=pmix apptainer exec --bind "$data:/data:ro" "$image" "$@"
