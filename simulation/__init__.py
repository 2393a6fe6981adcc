"""Stations, samples and both programs in one place: what stands in for the outside world."""
