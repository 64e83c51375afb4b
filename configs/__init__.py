"""Settings of the agents, one YAML file each: defaults, and a section per environment. Plain values only."""
