"""`python -m job` is the same as `gpt-job`."""

from job.cli import main

main()
