"""The command line: commands and tables, nothing else."""
