"""OpenAI's batch files: JSON lines of requests in, JSON lines of responses out."""
