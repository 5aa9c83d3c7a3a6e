"""Models, cases and reports that more than one test looks at."""
