"""Numbers, verdicts, text and figures from result rows; nothing here imports torch."""
