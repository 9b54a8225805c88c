"""The configuration of a run: its sections, field types, error sentences, strict YAML."""
