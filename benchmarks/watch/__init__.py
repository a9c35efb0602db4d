"""What is seen of the server and its machine during a run: /proc, /metrics, the hardware."""
