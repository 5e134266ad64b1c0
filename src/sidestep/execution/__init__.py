"""How a network is run, as values: masked, gathered, cascade; inference copies."""
