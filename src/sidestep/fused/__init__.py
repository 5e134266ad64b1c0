"""Opt-in passes of CPU training in few trips over memory; the only user of torch's compiler internals."""
