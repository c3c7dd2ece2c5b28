"""HTML pages: what runs, sweeps and evaluations look like to a reader."""
