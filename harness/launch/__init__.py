"""SLURM: jobs are rendered, submitted, watched and ended here, and machines are examined."""
