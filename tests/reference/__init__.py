"""Slow literal formulas, one loop per index of the equation."""
