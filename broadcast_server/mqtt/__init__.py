"""The bus and the broker: publish, subscribe, retain, will; threads and reconnects stay inside."""
