"""fit(): one visible loop over phases; optimiser, checkpoints, devices, processes."""
