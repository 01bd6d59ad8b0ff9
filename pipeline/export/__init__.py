"""What leaves for others: outcomes with their signed bytes as a file, and events of what is published."""
