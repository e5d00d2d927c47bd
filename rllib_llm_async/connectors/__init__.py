"""RLlib ConnectorV2 pieces, one class per file."""
