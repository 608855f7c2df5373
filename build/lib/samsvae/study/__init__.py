"""Running a study: the plan, its jobs, their records and the report."""
