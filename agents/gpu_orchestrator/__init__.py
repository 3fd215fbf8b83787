"""The orchestrator of machines: which there are, what a job would cost there, and which job may run where."""
