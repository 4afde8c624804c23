"""The types that worker and trainer share: messages, records and their encoding, engine data, and policy versions."""
