"""What an average over tasks means, a file a suite that has one."""
