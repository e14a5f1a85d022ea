"""What a run says about itself: metrics rows, where they are written, the console, logs, incidents and profiles."""
