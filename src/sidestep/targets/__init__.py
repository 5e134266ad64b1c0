"""What runs plans or carries them away: the native engine."""
