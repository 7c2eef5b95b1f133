"""Reports of runs: tables, pictures and an HTML page."""
