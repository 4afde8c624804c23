"""One conversation with the policy: its session, its prompts, its trace and its images."""
