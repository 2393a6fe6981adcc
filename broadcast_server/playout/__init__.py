"""What acts by itself: plans, publishes, reconciles relays, judges reports."""
