"""Many runs: protocols, jobs, local and Slurm execution."""
