"""What every training run needs, whatever it trains: its folder, checkpoints, schedule, memory."""
