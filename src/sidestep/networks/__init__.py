"""Dynamic networks: the one walk, routed, halting, with exits; the registry of models."""
