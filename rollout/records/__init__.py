"""What worker and trainer both speak: messages, records and their wire form, evidence, and the versions of a policy."""
