"""The control server of grassroots radio: what should sound, where and when, and the proof that it did."""
