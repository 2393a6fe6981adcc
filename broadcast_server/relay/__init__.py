"""Live audio: from a feed's bytes to signed, numbered, time-stamped Opus batches."""
