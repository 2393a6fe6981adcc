"""What the tests stand on: a clock ticked by hand, real brokers and stations, builders."""
