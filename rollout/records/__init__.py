"""What worker and trainer share: messages, records, the wire form of records, evidence, and the policy's versions."""
