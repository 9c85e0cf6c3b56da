"""Wall-clock time: runs raced in turn, and where the time goes."""
