"""What every job shares: its row, its life cycle, its events, and the way from a worker to a browser."""
