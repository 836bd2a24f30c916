"""The fleet: nodes as plain data, hosts as Ray actors, and the one place that starts or joins Ray."""
