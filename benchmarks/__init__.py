"""What the audit costs, measured."""
