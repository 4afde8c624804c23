"""The dialects in which agent programs call a model. Each reads requests, and writes answers in its own form."""
