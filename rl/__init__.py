"""Online agents: one file or one folder a family, each with a typed config that imports no torch."""
