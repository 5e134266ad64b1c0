"""Pure functions of outputs and decisions."""
