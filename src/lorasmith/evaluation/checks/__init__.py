"""What `lorasmith check` measures on a dataset and on the features of a run."""
