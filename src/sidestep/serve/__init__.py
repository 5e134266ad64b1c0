"""The HTTP server: runs and plans behind the Open Inference Protocol, with budgets that follow the load."""
