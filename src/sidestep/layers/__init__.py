"""What is computed, as papers print it: units, residual and dense blocks, shortcuts, heads."""
