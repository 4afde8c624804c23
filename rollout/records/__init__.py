"""What worker and trainer share: messages, records and their wire form, evidence, and the versions of a policy."""
