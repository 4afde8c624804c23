"""One conversation with the policy: its session, its prompts, the trace of what is known, and its images."""
