"""Static networks seen as stem, units and head; static weight files."""
