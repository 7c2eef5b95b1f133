"""Reports of runs: tables, images and an HTML page."""
