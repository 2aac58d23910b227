"""What this machine and this installation are good for, and what to change. Loads no model."""
