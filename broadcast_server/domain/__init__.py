"""Pure rules and values: places, time, precedence, timeline, policy, plan, proof. No I/O, no clock, no framework."""
