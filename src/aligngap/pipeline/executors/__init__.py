"""What runs a graph of stages: processes of this machine, later clusters."""
