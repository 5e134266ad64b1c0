"""Price lists: MACs of every option, router and exit, and milliseconds of a machine."""
