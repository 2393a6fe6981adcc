"""A speaker node honest enough to be the firmware's reference, and a fleet of them."""
