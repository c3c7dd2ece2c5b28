"""The HTML pages: a run, the features of a run, a sweep, an evaluation."""
