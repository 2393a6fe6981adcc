"""Figures with bars: each module measures one thing, peers in the same run; `run` prints and judges."""
