"""What is deployed: the Ray Serve app over a run's tuned prompts and trained FCNs, and its config."""
