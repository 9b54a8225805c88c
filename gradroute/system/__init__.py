"""Files, memory, devices, terminal, secrets, signals, statistics: nothing about models."""
