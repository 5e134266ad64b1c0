"""The HTTP server: networks behind the Open Inference Protocol, with budgets that follow the load."""
