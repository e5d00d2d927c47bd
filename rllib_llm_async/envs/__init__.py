"""Agent environments: the contract, the bundled benchmark, the registry of names."""
