"""Price lists: MACs of every option, router and exit."""
