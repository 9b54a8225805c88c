"""From result rows to numbers, verdicts, text and figures; nothing here imports torch."""
