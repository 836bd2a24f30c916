"""What is submitted to Ray: thin entry points, each with the YAML file of its settings."""
