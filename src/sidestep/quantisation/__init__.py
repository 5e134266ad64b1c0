"""Trained networks in INT8: ranges under the decisions that they take, plans of bytes, and what it costs."""
