"""What a person may do: one verb, one function, one transaction, one audit row."""
